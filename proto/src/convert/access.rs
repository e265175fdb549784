//! What a person asks for.

use core::time::Duration;

use nightlatch_core::grant::MOST_PARTS;
use nightlatch_core::port::PortPattern;
use nightlatch_core::prefix::Prefix;
use nightlatch_core::request::{Justification, Span};
use nightlatch_core::signing::sha256;
use prost::Message;
use uuid::Uuid;

use super::resource::{MachineRef, read_machine};
use super::time::{read_duration, read_timestamp};
use super::{InvalidField, list, required};
use crate::pb;

/// The most machines of one request.
pub const MOST_MACHINES: usize = 64;
/// How long a call waits for hosts where it doesn't say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// The longest that a call waits for hosts.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Where from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `me`: the address that the server sees the caller at.
    Caller,
    Prefix(Prefix),
}

/// What is asked for, on each of some machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub ports: Vec<PortPattern>,
    pub sources: Vec<Source>,
    pub span: Span,
    pub justification: Justification,
}

/// A call of CreateAccessRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub machines: Vec<MachineRef>,
    pub wish: Wish,
    pub wait: Duration,
    pub repeatable: Option<Repeatable>,
}

/// By what a call is known when it is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeatable {
    /// The caller's own.
    pub id: Uuid,
    /// SHA-256 of what is asked for.
    pub body: [u8; 32],
}

impl TryFrom<pb::AccessRequest> for Wish {
    type Error = InvalidField;

    fn try_from(request: pb::AccessRequest) -> Result<Self, InvalidField> {
        let pb::AccessRequest {
            name: _,
            id: _,
            subject: _,
            ports,
            sources,
            span,
            justification,
            create_time: _,
            outcomes: _,
        } = request;
        if ports.is_empty() {
            return Err(InvalidField::new("ports", "name at least one port"));
        }
        if sources.is_empty() {
            return Err(InvalidField::new(
                "sources",
                "name at least one source address, or `me`",
            ));
        }
        let source = |text: String| match text.as_str() {
            "me" => Ok(Source::Caller),
            text => text
                .parse()
                .map(Source::Prefix)
                .map_err(|error| InvalidField::new("", error)),
        };
        let span = match span {
            None => return Err(InvalidField::new("duration", "say how long, or until when")),
            Some(pb::access_request::Span::Duration(length)) => {
                Span::For(read_duration("duration", Some(length))?)
            }
            Some(pb::access_request::Span::EndTime(end)) => {
                Span::Until(read_timestamp("end_time", Some(end))?)
            }
        };
        Ok(Self {
            ports: list("ports", ports, MOST_PARTS, TryInto::try_into)?,
            sources: list("sources", sources, MOST_PARTS, source)?,
            span,
            justification: Justification::try_from(justification)
                .map_err(|error| InvalidField::new("justification", error))?,
        })
    }
}

impl TryFrom<pb::CreateAccessRequestRequest> for Asked {
    type Error = InvalidField;

    fn try_from(call: pb::CreateAccessRequestRequest) -> Result<Self, InvalidField> {
        let repeatable = read_repeatable(&call)?;
        let pb::CreateAccessRequestRequest {
            machines,
            access_request,
            wait,
            request_id: _,
        } = call;
        if machines.is_empty() {
            return Err(InvalidField::new("machines", "name at least one machine"));
        }
        Ok(Self {
            machines: list("machines", machines, MOST_MACHINES, |name| {
                read_machine("", &name)
            })?,
            wish: required("access_request", access_request)?.try_into()?,
            wait: read_wait(wait)?,
            repeatable,
        })
    }
}

fn read_repeatable(call: &pb::CreateAccessRequestRequest) -> Result<Option<Repeatable>, InvalidField> {
    if call.request_id.is_empty() {
        return Ok(None);
    }
    let id = Uuid::try_parse(&call.request_id).ok();
    let id = id.filter(|id| !id.is_nil() && call.request_id.len() == 36);
    let id = id.ok_or_else(|| {
        let reason = "is not a UUID: write one such as 3f0a6c1e-8d52-4b7a-9c61-2e5d8f9b7a10, or leave it out";
        InvalidField::new("request_id", reason)
    })?;
    let body = pb::CreateAccessRequestRequest {
        wait: None,
        request_id: String::new(),
        ..call.clone()
    };
    Ok(Some(Repeatable {
        id,
        body: sha256(&body.encode_to_vec()),
    }))
}

/// # Errors
/// A wait of more than a minute.
pub fn read_wait(wait: Option<prost_types::Duration>) -> Result<Duration, InvalidField> {
    match wait {
        None => Ok(DEFAULT_WAIT),
        Some(_) => read_duration("wait", wait)
            .ok()
            .filter(|wait| *wait <= LONGEST_WAIT)
            .ok_or_else(|| InvalidField::new("wait", "is not zero to 60 seconds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> pb::CreateAccessRequestRequest {
        let hour = prost_types::Duration {
            seconds: 3600,
            nanos: 0,
        };
        pb::CreateAccessRequestRequest {
            machines: vec!["machines/web-1".to_owned()],
            access_request: Some(pb::AccessRequest {
                ports: vec!["22".parse::<PortPattern>().unwrap().into()],
                sources: vec!["me".to_owned(), "192.0.2.7".to_owned()],
                span: Some(pb::access_request::Span::Duration(hour)),
                justification: " disk full ".to_owned(),
                ..Default::default()
            }),
            wait: None,
            request_id: String::new(),
        }
    }

    #[test]
    fn a_repeated_call_is_known_by_its_id_and_what_it_asks_for() {
        let id = "3f0a6c1e-8d52-4b7a-9c61-2e5d8f9b7a10";
        let read = |change: &dyn Fn(&mut pb::CreateAccessRequestRequest)| {
            let mut call = call();
            call.request_id = id.to_owned();
            change(&mut call);
            Asked::try_from(call).map(|asked| asked.repeatable)
        };
        let first = read(&|_| ()).unwrap().unwrap();
        assert_eq!(first.id.to_string(), id);
        let wait = Some(prost_types::Duration::default());
        assert_eq!(read(&move |call| call.wait = wait), Ok(Some(first.clone())));
        let other = read(&|call| call.machines[0] = "machines/web-2".to_owned());
        assert_ne!(other.unwrap().unwrap().body, first.body);
        assert_eq!(read(&|call| call.request_id.clear()), Ok(None));
        for bad in [
            "x",
            "00000000-0000-0000-0000-000000000000",
            "3f0a6c1e8d524b7a9c612e5d8f9b7a10",
        ] {
            let refused = read(&|call| call.request_id = bad.to_owned()).unwrap_err();
            assert_eq!(refused.field, "request_id", "{bad}");
        }
    }

    #[test]
    fn a_wish_is_read_whole() {
        let asked = Asked::try_from(call()).unwrap();
        assert_eq!(
            asked.wish.sources,
            [Source::Caller, Source::Prefix("192.0.2.7/32".parse().unwrap())]
        );
        assert_eq!(asked.wish.justification.as_str(), "disk full");
        assert_eq!(asked.wait, DEFAULT_WAIT);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_field() {
        let check = |field: &str, change: &dyn Fn(&mut pb::CreateAccessRequestRequest)| {
            let mut changed = call();
            change(&mut changed);
            assert_eq!(Asked::try_from(changed).unwrap_err().field, field);
        };
        fn wish(call: &mut pb::CreateAccessRequestRequest) -> &mut pb::AccessRequest {
            call.access_request.as_mut().unwrap()
        }
        check("machines", &|call| call.machines.clear());
        check("machines", &|call| {
            call.machines = vec!["machines/a".to_owned(); 65]
        });
        check("machines[0]", &|call| call.machines[0] = "a b".to_owned());
        check("access_request", &|call| call.access_request = None);
        check("ports", &|call| wish(call).ports.clear());
        check("ports[0].range", &|call| wish(call).ports[0].range = None);
        check("sources", &|call| wish(call).sources.clear());
        check("sources[1]", &|call| wish(call).sources[1] = "you".to_owned());
        check("duration", &|call| wish(call).span = None);
        check("justification", &|call| wish(call).justification.clear());
        let minutes = prost_types::Duration {
            seconds: 61,
            nanos: 0,
        };
        check("wait", &move |call| call.wait = Some(minutes));
    }
}
