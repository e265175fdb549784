//! The calls of the API that the verbs make, each with its deadline, and lists without their pages.

use std::time::Duration;

use nightlatch_core::policy::Policy;
use nightlatch_core::request::Span;
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::access::{Source, Wish};
use nightlatch_proto::convert::policy::rules;
use nightlatch_proto::convert::time::{duration, timestamp};
use nightlatch_proto::pb;
use nightlatch_proto::pb::access_service_client::AccessServiceClient;
use nightlatch_proto::pb::audit_service_client::AuditServiceClient;
use nightlatch_proto::pb::machine_service_client::MachineServiceClient;
use tonic::transport::Channel;
use tonic::{Request, Streaming};
use uuid::{NoContext, Uuid};

use super::{ANSWER, Client, has_broken};
use crate::failure::Failure;
use crate::listing::{Listed, Page, collected};
use crate::naming::{GrantRef, MachineRef, grant_resource, only_one};
use crate::record::{EventRecord, GrantRecord, KeyRecord, MachineRecord, PolicyRecord, RequestRecord};
use crate::when;

/// A page of the largest grants and events stays well below it.
const MOST_BYTES: usize = 32 << 20;
/// How many grants are looked through for the start of an id, newest first.
const MOST_SEARCHED: usize = 10_000;
const PAGE: i32 = 200;

/// Which grants to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct GrantFilter {
    pub(crate) machine: Option<MachineRef>,
    pub(crate) live_only: bool,
    pub(crate) own_only: bool,
}

/// Which access requests to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestFilter {
    pub(crate) machine: Option<MachineRef>,
    /// Only those that still wait for a machine.
    pub(crate) waiting_only: bool,
    pub(crate) own_only: bool,
}

/// Which events to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventFilter {
    pub(crate) machine: Option<MachineRef>,
    /// `grants/{id}`
    pub(crate) grant: Option<String>,
    pub(crate) person: Option<String>,
}

/// An access request as it changes.
#[derive(Debug)]
pub(crate) struct Watching {
    client: Client,
    stream: Streaming<pb::AccessRequest>,
}

impl Watching {
    /// `None` when the server ends the stream.
    ///
    /// # Errors
    /// The server's refusal, a broken connection.
    pub(crate) async fn next(&mut self) -> Result<Option<RequestRecord>, Failure> {
        match self.stream.message().await {
            Ok(next) => Ok(next.map(Into::into)),
            Err(status) => Err(self.client.failure(&status).await),
        }
    }
}

/// Gives the message the time limit that the server is told.
fn timed<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// One for each request that is made, so that it can be repeated without being made twice (UUIDv7).
fn fresh_id(now: Timestamp) -> Uuid {
    let micros = u64::try_from(now.micros()).unwrap_or_default();
    let nanos = u32::try_from(micros % 1_000_000 * 1000).unwrap_or_default();
    Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, micros / 1_000_000, nanos))
}

fn resource_or_all(machine: Option<&MachineRef>) -> String {
    machine.map(MachineRef::resource).unwrap_or_default()
}

fn to_pb_request(wish: Wish) -> pb::AccessRequest {
    let Wish {
        ports,
        sources,
        span,
        justification,
    } = wish;
    let sources = sources.into_iter().map(|source| match source {
        Source::Caller => "me".to_string(),
        Source::Prefix(prefix) => prefix.to_string(),
    });
    pb::AccessRequest {
        ports: ports.into_iter().map(Into::into).collect(),
        sources: sources.collect(),
        span: Some(match span {
            Span::For(length) => pb::access_request::Span::Duration(duration(length)),
            Span::Until(end) => pb::access_request::Span::EndTime(timestamp(end)),
        }),
        justification: justification.into(),
        ..pb::AccessRequest::default()
    }
}

impl Client {
    fn access(&self) -> AccessServiceClient<Channel> {
        AccessServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_BYTES)
    }

    fn machine_service(&self) -> MachineServiceClient<Channel> {
        MachineServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_BYTES)
    }

    fn audit(&self) -> AuditServiceClient<Channel> {
        AuditServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_BYTES)
    }

    pub(crate) async fn create_access_request(
        &self,
        machines: &[MachineRef],
        wish: Wish,
        wait: Duration,
    ) -> Result<RequestRecord, Failure> {
        let message = pb::CreateAccessRequestRequest {
            machines: machines.iter().map(MachineRef::resource).collect(),
            access_request: Some(to_pb_request(wish)),
            wait: Some(duration(wait)),
            request_id: fresh_id(when::now()).to_string(),
        };
        let limit = ANSWER.saturating_add(wait);
        let create = async || {
            let mut access = self.access();
            access.create_access_request(timed(message.clone(), limit)).await
        };
        let created = self.within(limit, async {
            match create().await {
                // The server knows by the id whether it has taken it already.
                Err(status) if has_broken(&status) => create().await,
                answered => answered,
            }
        });
        Ok(created.await?.into())
    }

    pub(crate) async fn access_request(&self, name: String) -> Result<RequestRecord, Failure> {
        let message = pb::GetAccessRequestRequest { name };
        Ok(self
            .within(ANSWER, self.access().get_access_request(timed(message, ANSWER)))
            .await?
            .into())
    }

    /// The stream itself has no deadline: keepalives notice a server that is gone.
    pub(crate) async fn watch(&self, name: String) -> Result<Watching, Failure> {
        let message = pb::WatchAccessRequestRequest { name };
        let stream = self
            .within(ANSWER, self.access().watch_access_request(message))
            .await?;
        Ok(Watching {
            client: self.clone(),
            stream,
        })
    }

    /// Withdraws it where it still waits, or on one of its machines only.
    pub(crate) async fn cancel_access_request(
        &self,
        name: String,
        machine: Option<&MachineRef>,
    ) -> Result<RequestRecord, Failure> {
        let message = pb::CancelAccessRequestRequest {
            name,
            machine: resource_or_all(machine),
        };
        Ok(self
            .within(
                ANSWER,
                self.access().cancel_access_request(timed(message, ANSWER)),
            )
            .await?
            .into())
    }

    pub(crate) async fn grant(&self, name: String) -> Result<GrantRecord, Failure> {
        Ok(self.whole_grant(name).await?.into())
    }

    /// The exact bytes that were signed.
    pub(crate) async fn envelope(&self, name: String) -> Result<Vec<u8>, Failure> {
        Ok(self.whole_grant(name).await?.envelope)
    }

    async fn whole_grant(&self, name: String) -> Result<pb::Grant, Failure> {
        let message = pb::GetGrantRequest { name };
        self.within(ANSWER, self.access().get_grant(timed(message, ANSWER)))
            .await
    }

    pub(crate) async fn end_grant(&self, name: String, wait: Duration) -> Result<GrantRecord, Failure> {
        let message = pb::EndGrantRequest {
            name,
            wait: Some(duration(wait)),
        };
        let limit = ANSWER.saturating_add(wait);
        Ok(self
            .within(limit, self.access().end_grant(timed(message, limit)))
            .await?
            .into())
    }

    pub(crate) async fn revoke_grant(&self, name: String, wait: Duration) -> Result<GrantRecord, Failure> {
        let message = pb::RevokeGrantRequest {
            name,
            wait: Some(duration(wait)),
        };
        let limit = ANSWER.saturating_add(wait);
        Ok(self
            .within(limit, self.access().revoke_grant(timed(message, limit)))
            .await?
            .into())
    }

    /// The newest grants, at most so many.
    pub(crate) async fn grants(
        &self,
        filter: &GrantFilter,
        most: usize,
    ) -> Result<Listed<GrantRecord>, Failure> {
        collected(most, async |page| self.grants_page(filter, page).await).await
    }

    /// Newest first.
    pub(crate) async fn grants_page(
        &self,
        filter: &GrantFilter,
        page: Option<String>,
    ) -> Result<Page<GrantRecord>, Failure> {
        let message = pb::ListGrantsRequest {
            page_size: PAGE,
            page_token: page.unwrap_or_default(),
            machine: resource_or_all(filter.machine.as_ref()),
            live_only: filter.live_only,
            own_only: filter.own_only,
        };
        let answer = self
            .within(ANSWER, self.access().list_grants(timed(message, ANSWER)))
            .await?;
        Ok(Page::of(answer.grants, answer.next_page_token))
    }

    /// The newest requests, at most so many.
    pub(crate) async fn access_requests(
        &self,
        filter: &RequestFilter,
        most: usize,
    ) -> Result<Listed<RequestRecord>, Failure> {
        collected(most, async |page| self.access_requests_page(filter, page).await).await
    }

    /// Newest first.
    pub(crate) async fn access_requests_page(
        &self,
        filter: &RequestFilter,
        page: Option<String>,
    ) -> Result<Page<RequestRecord>, Failure> {
        let message = pb::ListAccessRequestsRequest {
            page_size: PAGE,
            page_token: page.unwrap_or_default(),
            machine: resource_or_all(filter.machine.as_ref()),
            waiting_only: filter.waiting_only,
            own_only: filter.own_only,
        };
        let answer = self
            .within(ANSWER, self.access().list_access_requests(timed(message, ANSWER)))
            .await?;
        Ok(Page::of(answer.access_requests, answer.next_page_token))
    }

    pub(crate) async fn machines(&self) -> Result<Vec<MachineRecord>, Failure> {
        let listed = collected(usize::MAX, async |page: Option<String>| {
            let message = pb::ListMachinesRequest {
                page_size: PAGE,
                page_token: page.unwrap_or_default(),
            };
            let answer = self
                .within(
                    ANSWER,
                    self.machine_service().list_machines(timed(message, ANSWER)),
                )
                .await?;
            Ok(Page::of(answer.machines, answer.next_page_token))
        });
        Ok(listed.await?.items)
    }

    pub(crate) async fn machine(&self, machine: &MachineRef) -> Result<MachineRecord, Failure> {
        let message = pb::GetMachineRequest {
            name: machine.resource(),
        };
        Ok(self
            .within(ANSWER, self.machine_service().get_machine(timed(message, ANSWER)))
            .await?
            .into())
    }

    pub(crate) async fn policy(&self, machine: &MachineRef) -> Result<PolicyRecord, Failure> {
        let message = pb::GetPolicyRequest {
            name: machine.policy(),
        };
        Ok(self
            .within(ANSWER, self.machine_service().get_policy(timed(message, ANSWER)))
            .await?
            .into())
    }

    /// An empty etag isn't checked.
    pub(crate) async fn set_policy(
        &self,
        machine: &MachineRef,
        policy: &Policy,
        etag: String,
    ) -> Result<PolicyRecord, Failure> {
        let policy = pb::Policy {
            name: machine.policy(),
            rules: rules(policy),
            etag,
            ..pb::Policy::default()
        };
        let message = pb::UpdatePolicyRequest {
            policy: Some(policy),
            update_mask: None,
        };
        Ok(self
            .within(
                ANSWER,
                self.machine_service().update_policy(timed(message, ANSWER)),
            )
            .await?
            .into())
    }

    pub(crate) async fn delete_policy(&self, machine: &MachineRef, etag: String) -> Result<(), Failure> {
        let message = pb::DeletePolicyRequest {
            name: machine.policy(),
            etag,
        };
        self.within(
            ANSWER,
            self.machine_service().delete_policy(timed(message, ANSWER)),
        )
        .await
    }

    /// The newest events, oldest of them first.
    pub(crate) async fn newest_events(
        &self,
        filter: &EventFilter,
        most: i32,
    ) -> Result<Listed<EventRecord>, Failure> {
        let items = self.events(filter, most, None, true).await?.items;
        let is_cut = match items.first() {
            // Whether there are older ones is said by the oldest of all.
            Some(first) => {
                let oldest = self.events(filter, 1, None, false).await?.items;
                oldest
                    .first()
                    .is_some_and(|event| event.sequence < first.sequence)
            }
            None => false,
        };
        Ok(Listed { items, is_cut })
    }

    /// The events from the first on, page by page.
    pub(crate) async fn events_page(
        &self,
        filter: &EventFilter,
        page: Option<String>,
    ) -> Result<Page<EventRecord>, Failure> {
        self.events(filter, PAGE, page, false).await
    }

    async fn events(
        &self,
        filter: &EventFilter,
        page_size: i32,
        page: Option<String>,
        newest: bool,
    ) -> Result<Page<EventRecord>, Failure> {
        let EventFilter {
            machine,
            grant,
            person,
        } = filter;
        let message = pb::ListEventsRequest {
            page_size,
            page_token: page.unwrap_or_default(),
            machine: resource_or_all(machine.as_ref()),
            grant: grant.clone().unwrap_or_default(),
            subject: person.clone().unwrap_or_default(),
            newest,
        };
        let answer = self
            .within(ANSWER, self.audit().list_events(timed(message, ANSWER)))
            .await?;
        Ok(Page::of(answer.events, answer.next_page_token))
    }

    pub(crate) async fn signing_keys(&self) -> Result<Vec<KeyRecord>, Failure> {
        let message = pb::ListSigningKeysRequest {};
        let answer = self
            .within(ANSWER, self.audit().list_signing_keys(timed(message, ANSWER)))
            .await?;
        Ok(answer.keys.into_iter().map(Into::into).collect())
    }

    /// The full resource name of a grant, looked up where only the start of the id is given.
    ///
    /// # Errors
    /// No grant or several that start so.
    pub(crate) async fn grant_name(&self, grant: &GrantRef) -> Result<String, Failure> {
        match grant {
            GrantRef::Id(id) => Ok(grant_resource(*id)),
            GrantRef::Start(start) => {
                let all = self.grants(&GrantFilter::default(), MOST_SEARCHED).await?.items;
                let ids = all
                    .into_iter()
                    .map(|grant| grant.id)
                    .filter(|id| id.starts_with(start))
                    .collect();
                Ok(format!("grants/{}", only_one(start, ids)?))
            }
        }
    }
}
