//! The stream to the server. Generated types end here; decisions are the enforcer's.

use std::sync::Arc;
use std::time::Duration;

use nightlatch_core::assignment::{Assignment, Generation};
use nightlatch_core::signing::sha256;
use nightlatch_core::time::{BootTime, Timestamp};
use nightlatch_proto::convert::InvalidField;
use nightlatch_proto::convert::agent::{HostState, LONGEST_PART, PartsInArrival};
use nightlatch_proto::convert::break_glass::BreakGlassReport;
use nightlatch_proto::convert::time::{read_timestamp, timestamp};
use nightlatch_proto::pb;
use nightlatch_proto::pb::agent_service_client::AgentServiceClient;
use nightlatch_proto::pb::connect_request::Message as Question;
use nightlatch_proto::pb::connect_response::Message as Answer;
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::break_glass::{Recorded, opened_by};
use crate::causes::causes;
use crate::channel;
use crate::clock::Clock;
use crate::server_tls::{KnownTime, NoConnection, connect};
use questions::{Heard, Questions, Then};

mod questions;

/// What the enforcer may leave lying for one stream.
const QUEUE: usize = 256;
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A stream that lived so long was a good one.
const GOOD_LIFE: Duration = Duration::from_secs(30);

/// What the link tells the enforcer.
#[derive(Debug)]
pub enum FromServer {
    /// A stream begins. The first that goes into the channel is the Hello; it is dropped with the stream.
    Connected(mpsc::Sender<ToServer>),
    Time {
        time: Timestamp,
        asked_at: BootTime,
        heard_at: BootTime,
    },
    Assignment(Assignment),
    ReceiptsStored(u64),
    Disconnected,
}

/// What the enforcer tells the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToServer {
    Hello(Box<HostState>),
    Reply {
        generation: Generation,
        taken: Taken,
        message: String,
    },
    Receipts(Vec<Vec<u8>>),
    /// All that there is to say of this generation is stored.
    Settled(Generation),
    Report(Report),
    /// What root has opened on the host itself.
    BreakGlass(Box<Recorded>),
}

/// What became of an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Accepted,
    NeedWhole,
    Refused,
}

/// Something that concerns no single grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// A stable code.
    pub code: &'static str,
    pub message: String,
    pub time: Timestamp,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnded {
    #[error(transparent)]
    Connection(#[from] NoConnection),
    #[error("the connection failed")]
    Transport(#[from] tonic::transport::Error),
    #[error("the server ended the stream: {} ({:?})", .0.message(), .0.code())]
    Status(Box<Status>),
    #[error("the server closes")]
    GoingAway,
    #[error("the server does not answer")]
    Silent,
    #[error("the server sent what can't be meant: {0}")]
    Garbled(InvalidField),
    #[error("the server sent nothing that this version knows")]
    Unknown,
    #[error("the enforcer gave up the stream")]
    GivenUp,
}

/// Keeps one stream open, for as long as it is polled.
pub struct ServerLink<C> {
    pub addresses: Vec<String>,
    pub config: Arc<ClientConfig>,
    pub clock: C,
    pub known: KnownTime,
    pub enforcer: mpsc::Sender<FromServer>,
}

impl<C: Clock> ServerLink<C> {
    /// Connects, and again after each end, to one address after the other. Ends with the enforcer.
    pub async fn run(self) {
        let mut pause = SHORTEST_PAUSE;
        let mut said = String::new();
        for address in self.addresses.iter().cycle() {
            let begun = Instant::now();
            let ended = self.stream(address).await;
            if self.enforcer.send(FromServer::Disconnected).await.is_err() {
                return;
            }
            if begun.elapsed() >= GOOD_LIFE {
                pause = SHORTEST_PAUSE;
                said.clear();
            }
            if let Err(error) = ended {
                let text = error.to_string();
                if text == said {
                    tracing::debug!(address, error = %causes(&error), "no stream");
                } else {
                    tracing::warn!(
                        address,
                        error = %causes(&error),
                        "no stream to the server; will try again"
                    );
                    said = text;
                }
            }
            sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }

    async fn stream(&self, address: &str) -> Result<(), StreamEnded> {
        let stream = connect(address, Arc::clone(&self.config)).await?;
        let channel = channel::over(stream, address).await?;
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(2 * LONGEST_PART);

        let (to_server, mut from_enforcer) = mpsc::channel(QUEUE);
        self.tell(FromServer::Connected(to_server)).await?;
        let hello = timeout(HELLO_PATIENCE, from_enforcer.recv()).await;
        let Ok(Some(hello @ ToServer::Hello(_))) = hello else {
            return Err(StreamEnded::GivenUp);
        };

        // The Hello must lie in the request stream before the call is awaited.
        let (questions, requests) = mpsc::channel(QUEUE);
        put(&questions, question_of(hello)).await?;
        let mut time = Questions::default();
        ask(&questions, time.begin(self.clock.now())).await?;
        let call = client.connect(ReceiverStream::new(requests));
        let answers = timeout(ANSWER_PATIENCE, call)
            .await
            .map_err(|_elapsed| StreamEnded::Silent)?;
        let mut answers = answers
            .map_err(|status| StreamEnded::Status(Box::new(status)))?
            .into_inner();
        tracing::info!(address, "connected to the server");

        let mut clock_ticks = interval(CLOCK_INTERVAL);
        clock_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        clock_ticks.tick().await;
        let mut parts = PartsInArrival::default();
        loop {
            tokio::select! {
                answer = next(&mut answers) => match answer? {
                    Answer::ClockAnswer(answer) => {
                        let next = self.heard(answer, &mut time).await?;
                        ask(&questions, next).await?;
                    }
                    Answer::AssignmentPart(part) => {
                        if let Some(assignment) = parts.add(part).map_err(StreamEnded::Garbled)? {
                            self.tell(FromServer::Assignment(assignment)).await?;
                        }
                    }
                    Answer::ReceiptsStored(pb::ReceiptsStored { sequence }) => {
                        self.tell(FromServer::ReceiptsStored(sequence)).await?;
                    }
                    Answer::GoingAway(pb::GoingAway {}) => return Err(StreamEnded::GoingAway),
                },
                word = from_enforcer.recv() => {
                    put(&questions, question_of(word.ok_or(StreamEnded::GivenUp)?)).await?;
                }
                _ = clock_ticks.tick() => {
                    ask(&questions, time.begin(self.clock.now())).await?;
                }
                () = overdue(time.answer_by()) => return Err(StreamEnded::Silent),
            }
        }
    }

    /// The enforcer takes grants once it is told, so it is told the best of a round and nothing before.
    async fn heard(
        &self,
        answer: pb::ClockAnswer,
        questions: &mut Questions,
    ) -> Result<Option<u64>, StreamEnded> {
        let now = self.clock.now();
        let pb::ClockAnswer { number, time } = answer;
        let time = read_timestamp("time", time).map_err(StreamEnded::Garbled)?;
        match questions.heard(number, time, now) {
            Then::Ask(number) => Ok(Some(number)),
            Then::Known(Heard {
                time,
                asked_at,
                heard_at,
            }) => {
                self.tell(FromServer::Time {
                    time,
                    asked_at,
                    heard_at,
                })
                .await?;
                Ok(None)
            }
            Then::Nothing => Ok(None),
        }
    }

    async fn tell(&self, word: FromServer) -> Result<(), StreamEnded> {
        self.enforcer
            .send(word)
            .await
            .map_err(|_closed| StreamEnded::GivenUp)
    }
}

async fn overdue(answer_by: Option<Instant>) {
    match answer_by {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn next(answers: &mut Streaming<pb::ConnectResponse>) -> Result<Answer, StreamEnded> {
    match answers.message().await {
        Ok(Some(pb::ConnectResponse { message })) => message.ok_or(StreamEnded::Unknown),
        Ok(None) => Err(StreamEnded::GoingAway),
        Err(status) => Err(StreamEnded::Status(Box::new(status))),
    }
}

async fn ask(questions: &mpsc::Sender<pb::ConnectRequest>, number: Option<u64>) -> Result<(), StreamEnded> {
    match number {
        Some(number) => put(questions, Question::ClockQuestion(pb::ClockQuestion { number })).await,
        None => Ok(()),
    }
}

async fn put(questions: &mpsc::Sender<pb::ConnectRequest>, question: Question) -> Result<(), StreamEnded> {
    let request = pb::ConnectRequest {
        message: Some(question),
    };
    match timeout(ANSWER_PATIENCE, questions.send(request)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(StreamEnded::Silent),
    }
}

fn question_of(word: ToServer) -> Question {
    match word {
        ToServer::Hello(state) => Question::Hello((*state).into()),
        ToServer::Reply {
            generation,
            taken,
            message,
        } => Question::AssignmentReply(pb::AssignmentReply {
            generation: generation.0,
            result: match taken {
                Taken::Accepted => pb::AssignmentResult::Accepted,
                Taken::NeedWhole => pb::AssignmentResult::NeedWhole,
                Taken::Refused => pb::AssignmentResult::Refused,
            }
            .into(),
            message,
        }),
        ToServer::Settled(generation) => Question::Settled(pb::Settled {
            generation: generation.0,
        }),
        ToServer::Receipts(envelopes) => Question::Receipts(pb::Receipts { envelopes }),
        ToServer::BreakGlass(recorded) => {
            let Recorded { used, envelope, .. } = *recorded;
            let report = BreakGlassReport {
                opener: opened_by(&used.opener),
                length: used.length(),
                id: used.id,
                ports: used.ports,
                source: used.source,
                time: used.time,
                reason: used.reason,
                record: sha256(&envelope),
            };
            Question::BreakGlass(report.into())
        }
        ToServer::Report(Report { code, message, time }) => Question::Report(pb::Report {
            code: code.to_owned(),
            message,
            time: Some(timestamp(time)),
        }),
    }
}
