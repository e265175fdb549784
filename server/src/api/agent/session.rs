//! A connected agent: Hello, then whatever comes first of messages, wake-ups and the end.

use std::sync::Arc;
use std::time::Duration;

use nightlatch_core::assignment::Generation;
use nightlatch_core::id::{MachineId, MachineName};
use nightlatch_core::signing::PublicKey;
use nightlatch_proto::convert::InvalidField;
use nightlatch_proto::convert::agent::{HostState, parts};
use nightlatch_proto::error::Problem;
use nightlatch_proto::pb;
use pb::connect_request::Message as Said;
use pb::connect_response::Message as Answer;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Status, Streaming};
use tracing::{info, warn};

use crate::agents::{Agents, Arrival, Dispatch, Holds};
use crate::fleet::Presence;
use crate::refusal::Refusal;
use crate::store::StoreError;

mod hearing;

/// For Hello, for taking a message, and for answering an assignment (the agent flushes and applies it).
const HELLO_WITHIN: Duration = Duration::from_secs(10);
const TAKE_WITHIN: Duration = Duration::from_secs(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A host answers when its disk has the change. Another change, a revoke perhaps, waits no longer for that.
const OVERTAKE_AFTER: Duration = Duration::from_secs(2);
/// An agent asks for the time at once, and takes nothing before the answer.
const CLOCK_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Session {
    agents: Arc<Agents>,
    machine: MachineId,
    address: String,
    incoming: Streaming<pb::ConnectRequest>,
    outgoing: mpsc::Sender<Result<pb::ConnectResponse, Status>>,
}

/// Why a session is over.
enum End {
    /// The agent has closed the stream, or the connection broke.
    Left(String),
    /// A newer connection of the same machine, or its certificate no longer counts.
    Displaced,
    Stopping,
    /// What the agent is told before the stream ends.
    Refused(Status),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Refused(Refusal::from(error).into())
    }
}

impl From<InvalidField> for End {
    fn from(invalid: InvalidField) -> Self {
        Self::Refused(invalid.into())
    }
}

/// What is known of the agent in the course of its session.
struct Course {
    receipt_key: PublicKey,
    name: MachineName,
    holds: Holds,
    /// The agent has taken it, and it ended grants of which a receipt may still come.
    unsettled: Option<Generation>,
    in_flight: Option<InFlight>,
    /// Something may be there to send.
    is_due: bool,
    looked_at: Instant,
    knows_time: bool,
    asked_for_whole: bool,
    reports: u32,
    break_glass: u32,
    unknown: u32,
    bad_receipts: usize,
}

struct InFlight {
    generation: Generation,
    then: Holds,
    ends: bool,
    answer_by: Instant,
    overtaken_from: Instant,
}

impl Session {
    pub(super) const fn new(
        agents: Arc<Agents>,
        machine: MachineId,
        address: String,
        incoming: Streaming<pb::ConnectRequest>,
        outgoing: mpsc::Sender<Result<pb::ConnectResponse, Status>>,
    ) -> Self {
        Self {
            agents,
            machine,
            address,
            incoming,
            outgoing,
        }
    }

    pub(super) async fn run(mut self) {
        let state = match self.hello().await {
            Ok(state) => state,
            Err(end) => return self.say_goodbye(end).await,
        };
        let mut presence = self.agents.issuer.fleet.connect(self.machine);
        let arrived = self
            .agents
            .arrive(self.machine, &self.address, &state, self.now())
            .await;
        let mut name = self.machine.to_string();
        let end = match arrived {
            Ok(Some(arrival)) => {
                name = arrival.name.to_string();
                info!(machine = name, address = self.address, "connected");
                self.serve(&mut presence, arrival).await
            }
            Ok(None) => End::Displaced,
            Err(error) => error.into(),
        };
        // Displaced, another connection of the machine lives on; stopping isn't the machine's doing.
        let left = match &end {
            End::Left(why) => Some(why.clone()),
            End::Refused(status) => Some(status.message().to_owned()),
            End::Displaced | End::Stopping => None,
        };
        drop(presence);
        if let Some(why) = left {
            info!(machine = name, why, "disconnected");
            if let Err(error) = self.agents.leave(self.machine, &why, self.now()).await {
                warn!(machine = name, %error, "the disconnection can't be written down");
            }
        }
        self.say_goodbye(end).await;
    }

    fn now(&self) -> nightlatch_core::time::Timestamp {
        self.agents.issuer.clock.now()
    }

    async fn hello(&mut self) -> Result<HostState, End> {
        let late = |_elapsed| {
            let message = format!("no Hello within {} seconds", HELLO_WITHIN.as_secs());
            End::Refused(Problem::new(Code::DeadlineExceeded, "HELLO_MISSING", message).into())
        };
        let first = tokio::select! {
            first = timeout(HELLO_WITHIN, self.incoming.message()) => first.map_err(late)?,
            () = self.agents.issuer.stopping.cancelled() => return Err(End::Stopping),
        };
        match first.map_err(left)?.and_then(|request| request.message) {
            Some(Said::Hello(hello)) => Ok(hello.try_into()?),
            _ => Err(InvalidField::new("hello", "comes first").into()),
        }
    }

    async fn serve(&mut self, presence: &mut Presence, arrival: Arrival) -> End {
        let mut course = Course {
            receipt_key: arrival.receipt_key,
            name: arrival.name,
            // The last session may have ended before this was settled.
            unsettled: arrival.holds.generation,
            holds: arrival.holds,
            is_due: arrival.is_behind,
            in_flight: None,
            looked_at: Instant::now(),
            knows_time: false,
            asked_for_whole: false,
            reports: 0,
            break_glass: 0,
            unknown: 0,
            bad_receipts: 0,
        };
        let begin = Instant::now() + CLOCK_WITHIN;
        let stopping = self.agents.issuer.stopping.clone();
        loop {
            let overtaken_from = course.in_flight.as_ref().map(|sent| sent.overtaken_from);
            if course.is_due
                && overtaken_from.is_none_or(|moment| moment <= Instant::now())
                && course.knows_time
                && let Err(end) = self.dispatch(&mut course).await
            {
                return end;
            }
            let answer_by = course.in_flight.as_ref().map(|in_flight| in_flight.answer_by);
            let step = tokio::select! {
                message = self.incoming.message() => self.hear_all(&mut course, message).await,
                changed = presence.assignment.changed() => {
                    course.is_due = true;
                    // The fleet lives as long as the server.
                    changed.map_err(|_closed| End::Stopping)
                }
                () = presence.displaced.cancelled() => Err(End::Displaced),
                () = stopping.cancelled() => Err(End::Stopping),
                () = sleep_until(begin), if !course.knows_time => {
                    course.knows_time = true;
                    Ok(())
                }
                () = sleep_until(overtaken_from.unwrap_or(begin)), if course.is_due && overtaken_from.is_some() => {
                    Ok(())
                }
                () = sleep_until(answer_by.unwrap_or(begin)), if answer_by.is_some() => {
                    let message = "the agent has not answered an assignment in time";
                    Err(End::Refused(Problem::new(Code::DeadlineExceeded, "ANSWER_MISSING", message).into()))
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn dispatch(&self, course: &mut Course) -> Result<(), End> {
        course.is_due = false;
        course.looked_at = Instant::now();
        let dispatch = self.agents.dispatch(self.machine, &course.holds).await?;
        let Some(Dispatch {
            assignment,
            then,
            ends,
        }) = dispatch
        else {
            return Ok(());
        };
        let sent = course.in_flight.as_ref().map(|sent| sent.generation);
        if sent.is_some_and(|sent| sent >= assignment.generation) {
            return Ok(());
        }
        let generation = assignment.generation;
        for part in parts(assignment) {
            self.answer(Answer::AssignmentPart(part)).await?;
        }
        course.in_flight = Some(InFlight {
            generation,
            then,
            ends,
            answer_by: Instant::now() + ANSWER_WITHIN,
            overtaken_from: Instant::now() + OVERTAKE_AFTER,
        });
        Ok(())
    }

    /// A queue that stays full is a stream that has stalled.
    async fn answer(&self, message: Answer) -> Result<(), End> {
        let response = pb::ConnectResponse {
            message: Some(message),
        };
        match timeout(TAKE_WITHIN, self.outgoing.send(Ok(response))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_closed)) => Err(End::Left("the connection has broken".to_owned())),
            Err(_elapsed) => Err(End::Left("the agent has stopped reading".to_owned())),
        }
    }

    async fn say_goodbye(&self, end: End) {
        let last = match end {
            End::Left(_) => return,
            End::Displaced | End::Stopping => Ok(pb::ConnectResponse {
                message: Some(Answer::GoingAway(pb::GoingAway {})),
            }),
            End::Refused(status) => {
                warn!(machine = %self.machine, code = ?status.code(), message = status.message(), "refused");
                Err(status)
            }
        };
        // Whoever no longer listens needs no farewell.
        drop(timeout(Duration::from_secs(1), self.outgoing.send(last)).await);
    }
}

fn left(status: Status) -> End {
    // A message that can't be read is answered; a broken connection can't be.
    match status.code() {
        Code::OutOfRange | Code::InvalidArgument | Code::Internal | Code::ResourceExhausted => {
            End::Refused(status)
        }
        _ => End::Left(format!("the connection has broken: {}", status.message())),
    }
}
