//! What an agent says in the course of its session.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nightlatch_core::assignment::Generation;
use nightlatch_proto::convert::InvalidField;
use nightlatch_proto::convert::break_glass::BreakGlassReport;
use nightlatch_proto::convert::time::timestamp;
use nightlatch_proto::error::Problem;
use nightlatch_proto::pb;
use pb::connect_request::Message as Said;
use pb::connect_response::Message as Answer;
use tonic::{Code, Status};
use tracing::{debug, warn};

use super::{Course, End, Session, left};
use crate::receipts::KEPT;

/// Clock questions come in rounds, which are to be answered at once.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Reports of one connection that are written down.
const MOST_REPORTS: u32 = 100;
/// Messages of one connection that are mentioned although nothing is done about them. They come from a newer agent,
/// which must be able to connect: no end would reach it otherwise.
const MOST_UNKNOWN: u32 = 100;
const MOST_RECEIPTS: usize = 1000;
/// No more messages of receipts join a change that has so many. Their bytes are bounded by what flow control lets wait.
const TOGETHER: usize = 512;

/// A message; `None` at the end of the stream.
type Heard = Option<pb::ConnectRequest>;

impl Session {
    /// Hears what has come. Receipts that are there already, one message behind the other, share a change.
    pub(super) async fn hear_all(
        &mut self,
        course: &mut Course,
        message: Result<Heard, Status>,
    ) -> Result<(), End> {
        let mut receipts = match message.map_err(left)? {
            Some(pb::ConnectRequest {
                message: Some(Said::Receipts(receipts)),
            }) => bounded(receipts)?,
            other => return self.hear(course, other).await,
        };
        let mut next = None;
        while receipts.len() < TOGETHER && next.is_none() {
            match self.incoming_now() {
                None => break,
                Some(Ok(Some(pb::ConnectRequest {
                    message: Some(Said::Receipts(more)),
                }))) => receipts.extend(bounded(more)?),
                Some(other) => next = Some(other),
            }
        }
        self.hear_receipts(course, receipts).await?;
        match next {
            Some(next) => self.hear(course, next.map_err(left)?).await,
            None => Ok(()),
        }
    }

    /// What has come already, without waiting. Whoever waits next is woken as if this had not been.
    fn incoming_now(&mut self) -> Option<Result<Heard, Status>> {
        let mut nobody = Context::from_waker(Waker::noop());
        match pin!(self.incoming.message()).poll(&mut nobody) {
            Poll::Ready(message) => Some(message),
            Poll::Pending => None,
        }
    }

    async fn hear(&self, course: &mut Course, message: Heard) -> Result<(), End> {
        let Some(request) = message else {
            return Err(End::Left("the agent has closed the stream".to_owned()));
        };
        match request.message {
            Some(Said::ClockQuestion(pb::ClockQuestion { number })) => {
                let time = Some(timestamp(self.now()));
                self.answer(Answer::ClockAnswer(pb::ClockAnswer { number, time }))
                    .await?;
                course.knows_time = true;
                // Should a wake-up ever be missed, what is due is found here.
                course.is_due |= course.looked_at.elapsed() >= LOOK_AGAIN;
                Ok(())
            }
            Some(Said::AssignmentReply(reply)) => self.hear_reply(course, reply).await,
            Some(Said::Receipts(receipts)) => self.hear_receipts(course, bounded(receipts)?).await,
            Some(Said::Settled(pb::Settled { generation })) => {
                self.hear_settled(course, Generation(generation)).await
            }
            Some(Said::Report(report)) => self.hear_report(course, report).await,
            Some(Said::BreakGlass(report)) => self.hear_break_glass(course, report).await,
            Some(Said::Hello(_)) => Err(InvalidField::new("hello", "comes once").into()),
            None => {
                course.unknown = course.unknown.saturating_add(1);
                if course.unknown <= MOST_UNKNOWN {
                    debug!(machine = %course.name, "said something that this version doesn't know");
                }
                Ok(())
            }
        }
    }

    async fn hear_reply(&self, course: &mut Course, reply: pb::AssignmentReply) -> Result<(), End> {
        let pb::AssignmentReply {
            generation,
            result,
            message,
        } = reply;
        let Some(in_flight) = course.in_flight.take_if(|sent| sent.generation.0 == generation) else {
            // An answer to what a newer assignment has overtaken says nothing.
            return Ok(());
        };
        match pb::AssignmentResult::try_from(result) {
            Ok(pb::AssignmentResult::Accepted) => {
                course.holds = in_flight.then;
                course.asked_for_whole = false;
                if in_flight.ends {
                    course.unsettled = Some(in_flight.generation);
                }
                // A change in the meantime has woken us already, or does so now.
                Ok(())
            }
            Ok(pb::AssignmentResult::NeedWhole) if !course.asked_for_whole => {
                course.holds.generation = None;
                course.asked_for_whole = true;
                course.is_due = true;
                Ok(())
            }
            Ok(pb::AssignmentResult::NeedWhole | pb::AssignmentResult::Refused) => {
                let message: String = message.chars().filter(|c| !c.is_control()).take(500).collect();
                let now = self.now();
                let text = format!("did not take generation {generation}: {message}");
                self.agents
                    .report(self.machine, "ASSIGNMENT_REFUSED", text, now)
                    .await?;
                let problem = Problem::new(Code::FailedPrecondition, "ASSIGNMENT_REFUSED", "connect again");
                Err(End::Refused(problem.into()))
            }
            Ok(pb::AssignmentResult::Unspecified) | Err(_) => {
                Err(InvalidField::new("assignment_reply.result", "is not a result").into())
            }
        }
    }

    /// Of a generation that the agent isn't known to have taken it says nothing.
    async fn hear_settled(&self, course: &mut Course, settled: Generation) -> Result<(), End> {
        let is_over = |unsettled: &mut Generation| *unsettled <= settled;
        let Some(generation) = course.unsettled.take_if(is_over) else {
            return Ok(());
        };
        Ok(self
            .agents
            .settle_removed(self.machine, generation, self.now())
            .await?)
    }

    async fn hear_receipts(&self, course: &mut Course, envelopes: Vec<Vec<u8>>) -> Result<(), End> {
        let key = &course.receipt_key;
        let stored = self
            .agents
            .take_receipts(self.machine, key, envelopes, &mut course.bad_receipts, self.now())
            .await?;
        if course.bad_receipts > KEPT {
            let message = format!("more than {KEPT} of the receipts were none of this machine's");
            let problem = Problem::new(Code::InvalidArgument, "RECEIPTS_REFUSED", message);
            return Err(End::Refused(problem.into()));
        }
        match stored {
            Some(sequence) => {
                self.answer(Answer::ReceiptsStored(pb::ReceiptsStored { sequence }))
                    .await
            }
            None => Ok(()),
        }
    }

    async fn hear_report(&self, course: &mut Course, report: pb::Report) -> Result<(), End> {
        let pb::Report {
            code,
            message,
            time: _,
        } = report;
        let is_code = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        if code.is_empty() || code.len() > 64 || !code.chars().all(is_code) {
            return Err(InvalidField::new("report.code", "is not a code of at most 64 characters").into());
        }
        course.reports = course.reports.saturating_add(1);
        if course.reports > MOST_REPORTS {
            warn!(machine = %course.name, code, "reports too much");
            return Ok(());
        }
        let message: String = message.chars().filter(|c| !c.is_control()).take(1000).collect();
        Ok(self
            .agents
            .report(self.machine, &code, message, self.now())
            .await?)
    }
}

impl Session {
    async fn hear_break_glass(&self, course: &mut Course, report: pb::BreakGlass) -> Result<(), End> {
        let report = BreakGlassReport::try_from(report).map_err(|error| error.within("break_glass"))?;
        course.break_glass = course.break_glass.saturating_add(1);
        if course.break_glass > MOST_REPORTS {
            warn!(machine = %course.name, id = %report.id, "tells too much of break-glass");
            return Ok(());
        }
        Ok(self.agents.break_glass(self.machine, &report, self.now()).await?)
    }
}

fn bounded(receipts: pb::Receipts) -> Result<Vec<Vec<u8>>, End> {
    let pb::Receipts { envelopes } = receipts;
    if envelopes.len() > MOST_RECEIPTS {
        let reason = format_args!(
            "has {} entries, at most {MOST_RECEIPTS} are taken",
            envelopes.len()
        );
        return Err(InvalidField::new("receipts.envelopes", reason).into());
    }
    Ok(envelopes)
}
