//! AccessService.

use std::sync::Arc;
use std::time::Duration;

use nightlatch_core::id::{MachineId, Subject};
use nightlatch_core::rights::{Caller, Permission};
use nightlatch_proto::convert::access::{Asked, read_wait};
use nightlatch_proto::convert::resource::{read_grant, read_machine, read_request};
use nightlatch_proto::pb;
use nightlatch_proto::pb::access_service_server::AccessService;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::door::caller;
use super::{carried_through, named_machine, page_size, page_token, shown};
use crate::issuer::{Issuer, Standing, Whose, not_lapsed_after};
use crate::refusal::Refusal;
use crate::store::{grants, requests};

/// Asking for access, following it, ending it.
pub struct Access {
    pub issuer: Arc<Issuer>,
}

#[tonic::async_trait]
impl AccessService for Access {
    async fn create_access_request(
        &self,
        request: Request<pb::CreateAccessRequestRequest>,
    ) -> Result<Response<pb::AccessRequest>, Status> {
        let caller = caller(&request)?;
        let asked = Asked::try_from(request.into_inner())?;
        let wait = asked.wait;
        let now = self.issuer.clock.now();
        let issuer = self.issuer.clone();
        let accepted = carried_through(async move { issuer.request(&caller, asked, now).await }).await?;
        let standing = self.issuer.follow(accepted, wait).await?;
        Ok(Response::new(shown::access_request(standing, &self.issuer.fleet)))
    }

    async fn get_access_request(
        &self,
        request: Request<pb::GetAccessRequestRequest>,
    ) -> Result<Response<pb::AccessRequest>, Status> {
        let caller = caller(&request)?;
        let pb::GetAccessRequestRequest { name } = request.into_inner();
        let standing = self.visible(&caller, &name).await?;
        Ok(Response::new(shown::access_request(standing, &self.issuer.fleet)))
    }

    async fn list_access_requests(
        &self,
        request: Request<pb::ListAccessRequestsRequest>,
    ) -> Result<Response<pb::ListAccessRequestsResponse>, Status> {
        let caller = caller(&request)?;
        let pb::ListAccessRequestsRequest {
            page_size: size,
            page_token: token,
            machine,
            waiting_only,
            own_only,
        } = request.into_inner();
        let (size, before) = (page_size(size)?, page_token("requests", &token)?);
        let filter = requests::Filter {
            machine: self.machine_named(&machine).await?,
            subject: self.subject_shown(&caller, own_only),
            waiting_after: waiting_only.then(|| not_lapsed_after(self.issuer.clock.now())),
        };
        let page = self.issuer.standings(&filter, before, size).await?;
        let is_listed = |standing: &Standing| !waiting_only || standing.given_up().is_none();
        let shown = |standing| shown::access_request(standing, &self.issuer.fleet);
        Ok(Response::new(pb::ListAccessRequestsResponse {
            access_requests: page.entries.into_iter().filter(is_listed).map(shown).collect(),
            next_page_token: page.next.unwrap_or_default(),
        }))
    }

    type WatchAccessRequestStream = ReceiverStream<Result<pb::AccessRequest, Status>>;

    async fn watch_access_request(
        &self,
        request: Request<pb::WatchAccessRequestRequest>,
    ) -> Result<Response<Self::WatchAccessRequestStream>, Status> {
        let caller = caller(&request)?;
        let pb::WatchAccessRequestRequest { name } = request.into_inner();
        let standing = self.visible(&caller, &name).await?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(watch(self.issuer.clone(), standing, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_grant(&self, request: Request<pb::GetGrantRequest>) -> Result<Response<pb::Grant>, Status> {
        let caller = caller(&request)?;
        let pb::GetGrantRequest { name } = request.into_inner();
        let grant = self.issuer.grant(read_grant("name", &name)?).await?;
        if grant.grant.subject != caller.subject && !caller.may(Permission::ReadGrants) {
            return Err(Refusal::NotYours {
                needed: Permission::ReadGrants,
            }
            .into());
        }
        let now = self.issuer.clock.now();
        Ok(Response::new(shown::grant(grant, &self.issuer.fleet, now)))
    }

    async fn list_grants(
        &self,
        request: Request<pb::ListGrantsRequest>,
    ) -> Result<Response<pb::ListGrantsResponse>, Status> {
        let caller = caller(&request)?;
        let pb::ListGrantsRequest {
            page_size: size,
            page_token: token,
            machine,
            live_only,
            own_only,
        } = request.into_inner();
        let (size, before) = (page_size(size)?, page_token("grants", &token)?);
        let now = self.issuer.clock.now();
        let filter = grants::Filter {
            machine: self.machine_named(&machine).await?,
            subject: self.subject_shown(&caller, own_only),
            live_at: live_only.then_some(now),
        };
        let mut connection = self.issuer.store.read().await.map_err(Refusal::from)?;
        let page = grants::list(&mut connection, &filter, before, size)
            .await
            .map_err(Refusal::from)?;
        let shown = |listed| shown::grant(listed, &self.issuer.fleet, now);
        Ok(Response::new(pb::ListGrantsResponse {
            grants: page.entries.into_iter().map(shown).collect(),
            next_page_token: page.next.unwrap_or_default(),
        }))
    }

    async fn end_grant(&self, request: Request<pb::EndGrantRequest>) -> Result<Response<pb::Grant>, Status> {
        let caller = caller(&request)?;
        let pb::EndGrantRequest { name, wait } = request.into_inner();
        self.end(&caller, &name, Whose::Own, read_wait(wait)?).await
    }

    async fn revoke_grant(
        &self,
        request: Request<pb::RevokeGrantRequest>,
    ) -> Result<Response<pb::Grant>, Status> {
        let caller = caller(&request)?;
        let pb::RevokeGrantRequest { name, wait } = request.into_inner();
        self.end(&caller, &name, Whose::Anyones, read_wait(wait)?).await
    }

    async fn cancel_access_request(
        &self,
        request: Request<pb::CancelAccessRequestRequest>,
    ) -> Result<Response<pb::AccessRequest>, Status> {
        let caller = caller(&request)?;
        let pb::CancelAccessRequestRequest { name, machine } = request.into_inner();
        let id = read_request("name", &name)?;
        let machine = (!machine.is_empty()).then(|| read_machine("machine", &machine));
        let machine = machine.transpose()?;
        let (issuer, now) = (self.issuer.clone(), self.issuer.clock.now());
        carried_through(async move { issuer.withdraw(&caller, id, machine, now).await }).await?;
        let standing = self.issuer.standing(id).await?;
        Ok(Response::new(shown::access_request(standing, &self.issuer.fleet)))
    }
}

impl Access {
    /// The machine that a list is narrowed to; empty: all.
    async fn machine_named(&self, name: &str) -> Result<Option<MachineId>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let which = read_machine("machine", name)?;
        Ok(Some(
            named_machine(&self.issuer.store, "machine", which).await?.id,
        ))
    }

    /// Whose entries a caller is shown; `None`: everyone's.
    fn subject_shown(&self, caller: &Caller, own_only: bool) -> Option<Subject> {
        (own_only || !caller.may(Permission::ReadGrants)).then(|| caller.subject.clone())
    }

    async fn visible(&self, caller: &Caller, name: &str) -> Result<Standing, Status> {
        let standing = self.issuer.standing(read_request("name", name)?).await?;
        if standing.request.subject == caller.subject || caller.may(Permission::ReadGrants) {
            Ok(standing)
        } else {
            Err(Refusal::NotYours {
                needed: Permission::ReadGrants,
            }
            .into())
        }
    }

    async fn end(
        &self,
        caller: &Caller,
        name: &str,
        whose: Whose,
        wait: Duration,
    ) -> Result<Response<pb::Grant>, Status> {
        let id = read_grant("name", name)?;
        let (issuer, caller, now) = (self.issuer.clone(), caller.clone(), self.issuer.clock.now());
        carried_through(async move { issuer.end(&caller, id, whose, now).await }).await?;
        let (grant, now) = self.issuer.follow_end(id, wait).await?;
        Ok(Response::new(shown::grant(grant, &self.issuer.fleet, now)))
    }
}

/// Time alone changes a request too, so it is looked at now and then.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

async fn watch(
    issuer: Arc<Issuer>,
    first: Standing,
    sender: mpsc::Sender<Result<pb::AccessRequest, Status>>,
) {
    let id = first.request.id;
    let mut news = issuer.news_of(&first);
    let mut last = None;
    loop {
        let standing = match issuer.standing(id).await {
            Ok(standing) => standing,
            Err(refusal) => {
                // Nobody to tell is fine.
                drop(sender.send(Err(refusal.into())).await);
                return;
            }
        };
        let is_final = !standing.is_open_ended();
        let shown = shown::access_request(standing, &issuer.fleet);
        if last.as_ref() != Some(&shown) {
            if sender.send(Ok(shown.clone())).await.is_err() {
                return;
            }
            last = Some(shown);
        }
        if is_final || issuer.stopping.is_cancelled() {
            return;
        }
        let look_again = Instant::now() + LOOK_AGAIN;
        tokio::select! {
            _ = issuer.wait_for(&mut news, look_again) => {}
            () = sender.closed() => return,
        }
    }
}
