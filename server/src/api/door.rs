//! In front of all services: who calls, and whether they may. What no rule allows doesn't get past.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nightlatch_core::audit::EventKind;
use nightlatch_core::id::{InstallationId, MachineId, Subject};
use nightlatch_core::rights::Caller;
use nightlatch_proto::convert::resource::MachineRef;
use nightlatch_proto::error::Problem;
use tonic::body::Body;
use tonic::{Code, Request, Status};
use tower::{Layer, Service};
use tracing::warn;

use super::passing::{Leave, Passing};
use super::permissions::{Rule, rule};
use crate::audit;
use crate::causes::in_one_line;
use crate::clock::Clock;
use crate::identity::Kind;
use crate::identity::peer::Peer;
use crate::listener::Remote;
use crate::refusal::{PERMISSION_MISSING, Refusal};
use crate::store::{Store, StoreError, machines, users};
use crate::turned_away::TurnedAway;

/// Whom a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    People,
    Agents,
}

/// Decides who gets in.
pub struct Door {
    pub store: Store,
    pub installation: InstallationId,
    pub listener: Listener,
    pub passing: Passing,
    pub clock: Arc<dyn Clock>,
    /// By who called which method: what harms nobody hides nothing else.
    pub turned_away: TurnedAway<(Subject, String)>,
}

/// A machine's agent, as its certificate says.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    pub machine: MachineId,
}

impl Door {
    /// Adds who calls to the request, or says why they may not.
    async fn admit<B>(&self, request: &mut http::Request<B>) -> Result<Option<Leave>, Status> {
        let rule = rule(request.uri().path()).ok_or_else(|| {
            no_method("this version of the server has no such method: call another, or a newer server")
        })?;
        let remote = request.extensions().get::<Remote>().cloned();
        let Remote {
            address,
            certificate,
            guest,
        } = remote.ok_or_else(|| Status::unauthenticated("nothing is known of the connection"))?;
        let certificate = certificate.as_deref();
        match (rule, self.listener) {
            (Rule::Anyone | Rule::AnyonesStream, Listener::People) => {
                // A program that only watches the health may say who it is, and then stays.
                if !guest.is_known()
                    && let Ok(peer) = self.peer(certificate, &[Kind::Person, Kind::Program])
                    && self.caller(&peer, address).await.is_ok()
                {
                    guest.is_recognised();
                }
                if rule == Rule::AnyonesStream {
                    return self.passing.leave(&guest).map(Some);
                }
            }
            (Rule::Agent, Listener::Agents) => {
                let peer = self.peer(certificate, &[Kind::Machine])?;
                let agent = self.agent(&peer).await?;
                guest.is_recognised();
                request.extensions_mut().insert(agent);
            }
            (Rule::Needs(any), Listener::People) => {
                let peer = self.peer(certificate, &[Kind::Person, Kind::Program])?;
                let caller = self.caller(&peer, address).await?;
                guest.is_recognised();
                request.extensions_mut().insert(caller.clone());
                if !any.iter().any(|permission| caller.may(*permission)) {
                    let needed: Vec<String> = any.iter().map(ToString::to_string).collect();
                    let needed = needed.join(" or ");
                    let message = format!(
                        "{} may not do this: it takes the permission {needed}, which a role gives",
                        caller.subject
                    );
                    let problem = Problem::new(Code::PermissionDenied, PERMISSION_MISSING, message);
                    return Err(problem.with("permission", needed).into());
                }
            }
            (Rule::Anyone | Rule::AnyonesStream | Rule::Needs(_), Listener::Agents) => {
                return Err(no_method(
                    "this method is not on the port for agents: call the server's port for people (7443, or its `listen`)",
                ));
            }
            (Rule::Agent, Listener::People) => {
                return Err(no_method(
                    "this method is for agents: call the server's port for them (7444, or its `listen_agents`)",
                ));
            }
        }
        Ok(None)
    }

    /// Writes down that a caller lacks a permission, whoever found it out. Nothing is held up where it can't be.
    async fn remember(&self, caller: &Caller, method: &str, refused: &Status) {
        let problem = Problem::from_status(refused);
        if problem.reason != PERMISSION_MISSING {
            return;
        }
        let now = self.clock.now();
        let method = method.trim_start_matches('/');
        let leave = self
            .turned_away
            .note((caller.subject.clone(), method.to_owned()), now);
        let Some(leave) = leave else { return };
        let event = audit::by(caller, now, EventKind::CallRefused, problem.message);
        let event = audit::with(event, "method", method);
        let needed = problem.metadata.get("permission").map(String::as_str);
        let event = audit::with(event, "permission", needed.unwrap_or_default());
        let mut event = leave.told_in(event);
        event.reason = Some(PERMISSION_MISSING.to_owned());
        let written = async {
            let mut change = self.store.change().await?;
            change.record(&event, Some(&caller.subject));
            change.commit().await
        };
        match written.await {
            Ok(()) => leave.written(),
            Err(error) => warn!(error = %in_one_line(&error), "a refused call can't be written down"),
        }
    }

    fn peer(&self, certificate: Option<&[u8]>, kinds: &[Kind]) -> Result<Peer, Status> {
        let certificate = certificate.ok_or_else(|| {
            let message = "this takes a client certificate: `nightlatch-server user issue` makes one";
            unauthenticated("CERTIFICATE_MISSING", message)
        })?;
        let peer = Peer::read(certificate)
            .map_err(|invalid| unauthenticated("CERTIFICATE_INVALID", &invalid.to_string()))?;
        if peer.identity.installation != self.installation {
            let message = "the certificate is of another Nightlatch installation";
            return Err(unauthenticated("CERTIFICATE_INVALID", message));
        }
        if !kinds.contains(&peer.identity.kind) {
            let message = format!("a {} certificate does not count here", peer.identity.kind);
            return Err(unauthenticated("CERTIFICATE_KIND", &message));
        }
        Ok(peer)
    }

    async fn caller(&self, peer: &Peer, address: IpAddr) -> Result<Caller, Status> {
        let subject = peer.identity.id.parse().ok().ok_or_else(superseded)?;
        let find = async {
            let mut connection = self.store.read().await?;
            users::find(&mut connection, &subject).await
        };
        let user = find.await.map_err(unavailable)?;
        let user = user
            .filter(|user| user.fingerprint == peer.fingerprint)
            .ok_or_else(superseded)?;
        Ok(Caller {
            subject,
            roles: user.roles,
            address,
        })
    }

    async fn agent(&self, peer: &Peer) -> Result<Agent, Status> {
        let machine = peer.identity.id.parse().ok().ok_or_else(superseded)?;
        let find = async {
            let mut connection = self.store.read().await?;
            machines::find(&mut connection, &MachineRef::Id(machine)).await
        };
        let known = find.await.map_err(unavailable)?;
        let known = known.filter(|known| known.fingerprint == peer.fingerprint && !known.is_retired);
        known.map(|_| Agent { machine }).ok_or_else(superseded)
    }
}

fn no_method(message: &str) -> Status {
    Problem::new(Code::Unimplemented, "METHOD_UNKNOWN", message).into()
}

fn unauthenticated(reason: &str, message: &str) -> Status {
    Problem::new(Code::Unauthenticated, reason, message).into()
}

fn superseded() -> Status {
    let message =
        "the certificate no longer counts: a newer one was issued in its place, or its holder is gone";
    unauthenticated("CERTIFICATE_SUPERSEDED", message)
}

fn unavailable(error: StoreError) -> Status {
    Refusal::from(error).into()
}

/// Who calls, as the door has found.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get()
        .cloned()
        .ok_or_else(|| Status::unauthenticated("nobody is known to call"))
}

/// Where a call comes from.
pub(super) fn remote<T>(request: &Request<T>) -> Result<Remote, Status> {
    let remote = request.extensions().get::<Remote>();
    remote
        .cloned()
        .ok_or_else(|| Status::unauthenticated("nothing is known of the connection"))
}

/// Puts a door in front of services.
#[derive(Clone)]
pub struct DoorLayer(pub Arc<Door>);

impl<S> Layer<S> for DoorLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            inner,
            door: self.0.clone(),
        }
    }
}

/// Services behind a door.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    door: Arc<Door>,
}

impl<S, B> Service<http::Request<B>> for Guarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // The one that was asked for readiness must be the one that is called.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let door = self.door.clone();
        Box::pin(async move {
            let method = request.uri().path().to_owned();
            let admitted = door.admit(&mut request).await;
            let caller = request.extensions().get::<Caller>().cloned();
            let answer = match admitted {
                Ok(None) => inner.call(request).await?,
                Ok(Some(leave)) => {
                    let answer = inner.call(request).await?;
                    door.passing.bound(answer, leave)
                }
                Err(status) => status.into_http(),
            };
            let refused = Status::from_header_map(answer.headers());
            if let (Some(caller), Some(refused)) = (caller, refused)
                && refused.code() == Code::PermissionDenied
            {
                // Also if whoever called does not wait for it.
                let remembering =
                    tokio::spawn(async move { door.remember(&caller, &method, &refused).await });
                drop(remembering.await);
            }
            Ok(answer)
        })
    }
}
