//! AuditService.

use nightlatch_core::audit::Event;
use nightlatch_core::keys::VerifiedKeys;
use nightlatch_proto::convert::InvalidField;
use nightlatch_proto::convert::resource::{self, read_grant, read_machine};
use nightlatch_proto::convert::time::timestamp;
use nightlatch_proto::pb;
use nightlatch_proto::pb::audit_service_server::AuditService;
use tonic::{Request, Response, Status};

use super::{named_machine, page_size, page_token};
use crate::refusal::Refusal;
use crate::store::events::{self, Filter, Recorded};
use crate::store::{Store, StoreError};

/// What happened, and the keys to check it with.
pub struct Audit {
    pub store: Store,
    pub keys: VerifiedKeys,
}

#[tonic::async_trait]
impl AuditService for Audit {
    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let pb::ListEventsRequest {
            page_size: size,
            page_token: token,
            machine,
            grant,
            subject,
            newest,
        } = request.into_inner();
        let (size, after) = (page_size(size)?, page_token::<u64>("events", &token)?);
        if newest && after.is_some() {
            return Err(InvalidField::new("newest", "goes without a page token only").into());
        }
        let mut filter = Filter::default();
        if !machine.is_empty() {
            let which = read_machine("machine", &machine)?;
            filter.machine = Some(named_machine(&self.store, "machine", which).await?.id);
        }
        if !grant.is_empty() {
            filter.grant = Some(read_grant("grant", &grant)?);
        }
        if !subject.is_empty() {
            filter.subject = Some(
                subject
                    .parse()
                    .map_err(|error| InvalidField::new("subject", error))?,
            );
        }
        let mut connection = self.store.read().await.map_err(Refusal::from)?;
        let page = if newest {
            events::newest(&mut connection, &filter, size).await
        } else {
            events::list(&mut connection, &filter, after, size).await
        };
        let page = page.map_err(Refusal::from)?;
        let shown = page.entries.into_iter().map(shown).collect::<Result<_, _>>();
        Ok(Response::new(pb::ListEventsResponse {
            events: shown.map_err(Refusal::from)?,
            next_page_token: page.next.unwrap_or_default(),
        }))
    }

    async fn list_signing_keys(
        &self,
        request: Request<pb::ListSigningKeysRequest>,
    ) -> Result<Response<pb::ListSigningKeysResponse>, Status> {
        let pb::ListSigningKeysRequest {} = request.into_inner();
        let shown = |key: &nightlatch_core::signing::PublicKey| pb::SigningKey {
            key_id: key.id().to_string(),
            public_key_pem: key.to_pem().unwrap_or_default(),
        };
        let keys = self.keys.list().keys.iter().map(shown).collect();
        Ok(Response::new(pb::ListSigningKeysResponse { keys }))
    }
}

fn shown(recorded: Recorded) -> Result<pb::Event, StoreError> {
    let Recorded { sequence, json } = recorded;
    let unreadable = |error: serde_json::Error| StoreError::Unreadable {
        column: format!("events.json of {sequence}"),
        why: error.to_string(),
    };
    let event: Event = serde_json::from_slice(&json).map_err(unreadable)?;
    let kind = serde_json::to_value(event.kind).map_err(unreadable)?;
    Ok(pb::Event {
        sequence,
        time: Some(timestamp(event.at)),
        kind: kind.as_str().unwrap_or_default().to_owned(),
        actor: event.actor,
        address: event.address.unwrap_or_default(),
        machine: event.machine.map(resource::machine).unwrap_or_default(),
        machine_display_name: event.machine_name.map(String::from).unwrap_or_default(),
        grant: event.grant.map(resource::grant).unwrap_or_default(),
        access_request: event.request.map(resource::request).unwrap_or_default(),
        reason: event.reason.unwrap_or_default(),
        message: event.message,
        details: event.details.into_iter().collect(),
        json,
    })
}
