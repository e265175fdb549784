//! MachineService.

use std::sync::Arc;

use nightlatch_core::policy::Policy;
use nightlatch_proto::convert::InvalidField;
use nightlatch_proto::convert::resource::{read_machine, read_policy};
use nightlatch_proto::pb;
use nightlatch_proto::pb::machine_service_server::MachineService;
use tonic::{Request, Response, Status};

use super::door::caller;
use super::{carried_through, named_machine, page_size, page_token, shown};
use crate::issuer::Issuer;
use crate::policies::Policies;
use crate::refusal::Refusal;
use crate::store::machines;

/// Machines and their policies.
pub struct Machines {
    pub issuer: Arc<Issuer>,
    pub policies: Arc<Policies>,
}

#[tonic::async_trait]
impl MachineService for Machines {
    async fn get_machine(
        &self,
        request: Request<pb::GetMachineRequest>,
    ) -> Result<Response<pb::Machine>, Status> {
        let pb::GetMachineRequest { name } = request.into_inner();
        let which = read_machine("name", &name)?;
        let machine = named_machine(&self.issuer.store, "name", which.clone()).await?;
        let mut connection = self.issuer.store.read().await.map_err(Refusal::from)?;
        let now = self.issuer.clock.now();
        let listed = machines::show(&mut connection, machine.id, now)
            .await
            .map_err(Refusal::from)?;
        let unknown = || Refusal::UnknownMachine {
            field: "name".to_owned(),
            machine: which,
        };
        Ok(Response::new(shown::machine(
            listed.ok_or_else(unknown)?,
            &self.issuer.fleet,
        )))
    }

    async fn list_machines(
        &self,
        request: Request<pb::ListMachinesRequest>,
    ) -> Result<Response<pb::ListMachinesResponse>, Status> {
        let pb::ListMachinesRequest {
            page_size: size,
            page_token: token,
        } = request.into_inner();
        let (size, after) = (page_size(size)?, page_token("machines", &token)?);
        let now = self.issuer.clock.now();
        let mut connection = self.issuer.store.read().await.map_err(Refusal::from)?;
        let page = machines::list(&mut connection, after, size, now)
            .await
            .map_err(Refusal::from)?;
        let shown = |listed| shown::machine(listed, &self.issuer.fleet);
        Ok(Response::new(pb::ListMachinesResponse {
            machines: page.entries.into_iter().map(shown).collect(),
            next_page_token: page.next.unwrap_or_default(),
        }))
    }

    async fn get_policy(
        &self,
        request: Request<pb::GetPolicyRequest>,
    ) -> Result<Response<pb::Policy>, Status> {
        let pb::GetPolicyRequest { name } = request.into_inner();
        let machine = named_machine(&self.issuer.store, "name", read_policy("name", &name)?).await?;
        let policy = shown::machine_policy(&machine).ok_or_else(|| Refusal::NoPolicy(machine.name))?;
        Ok(Response::new(policy))
    }

    async fn update_policy(
        &self,
        request: Request<pb::UpdatePolicyRequest>,
    ) -> Result<Response<pb::Policy>, Status> {
        let caller = caller(&request)?;
        let pb::UpdatePolicyRequest { policy, update_mask } = request.into_inner();
        let mask = update_mask.map(|mask| mask.paths).unwrap_or_default();
        if !mask.iter().all(|path| path == "rules" || path == "*") {
            return Err(InvalidField::new("update_mask", "only `rules` can be changed").into());
        }
        let policy = policy.ok_or_else(|| InvalidField::new("policy", "is missing"))?;
        let which = read_policy("policy.name", &policy.name)?;
        let etag = policy.etag.clone();
        let policy = Policy::try_from(policy).map_err(|error| error.within("policy"))?;
        let now = self.issuer.clock.now();
        let policies = self.policies.clone();
        let machine =
            carried_through(async move { policies.set(&caller, &which, &policy, &etag, now).await }).await?;
        let policy = shown::machine_policy(&machine).ok_or_else(|| Refusal::NoPolicy(machine.name))?;
        Ok(Response::new(policy))
    }

    async fn delete_policy(&self, request: Request<pb::DeletePolicyRequest>) -> Result<Response<()>, Status> {
        let caller = caller(&request)?;
        let pb::DeletePolicyRequest { name, etag } = request.into_inner();
        let which = read_policy("name", &name)?;
        let (policies, now) = (self.policies.clone(), self.issuer.clock.now());
        carried_through(async move { policies.delete(&caller, &which, &etag, now).await }).await?;
        Ok(Response::new(()))
    }
}
