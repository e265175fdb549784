//! A host as the server sees it: enrols, connects, verifies what it is sent, signs receipts.

use std::collections::BTreeMap;

use nightlatch_core::assignment::{Assignment, Digest, Generation};
use nightlatch_core::ceiling::Ceiling;
use nightlatch_core::grant::Grant;
use nightlatch_core::id::{GrantId, MachineId};
use nightlatch_core::keys::VerifiedKeys;
use nightlatch_core::policy::VerifiedPolicy;
use nightlatch_core::receipt::{Done, Happening, Receipt};
use nightlatch_core::signing::{PublicKey, SigningKey, hex, sha256};
use nightlatch_core::time::{BootId, Timestamp};
use nightlatch_proto::convert::agent::{HostState, PartsInArrival};
use nightlatch_proto::pb;
use nightlatch_server::clock::Clock;
use nightlatch_server::console;
use pb::agent_service_client::AgentServiceClient;
use pb::connect_request::Message as Said;
use pb::connect_response::Message as Answer;
use pb::enrollment_service_client::EnrollmentServiceClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::world::{Credentials, SOON, World};

#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) id: MachineId,
    pub(crate) credentials: Credentials,
    pub(crate) ceiling: Option<Ceiling>,
    pub(crate) generation: Generation,
    pub(crate) grants: BTreeMap<GrantId, Option<Grant>>,
    pub(crate) policy: Option<VerifiedPolicy>,
    pub(crate) sequence: u64,
    /// The last receipt that the server has stored.
    pub(crate) stored: u64,
    pub(crate) previous: String,
    pub(crate) receipt_seed: [u8; 32],
    pub(crate) root: PublicKey,
    pub(crate) keys: Option<VerifiedKeys>,
}

pub(crate) fn open_ceiling() -> Ceiling {
    Ceiling {
        ports: vec!["1-256".parse().unwrap()],
        longest: core::time::Duration::from_secs(24 * 3600),
        max_ahead: core::time::Duration::from_secs(24 * 3600),
        widest_ipv4: 0,
        widest_ipv6: 0,
    }
}

/// The secret of a new token.
pub(crate) async fn secret(world: &World, name: Option<&str>, replace: bool) -> String {
    use base64::Engine;
    let name = name.map(|name| name.parse().unwrap());
    let token = console::create_token(&world.config, name, replace, world.clock.now())
        .await
        .unwrap();
    let json =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.text.strip_prefix("nlt1_").unwrap());
    let json: serde_json::Value = serde_json::from_slice(&json.unwrap()).unwrap();
    json["secret"].as_str().unwrap().to_owned()
}

impl Host {
    pub(crate) async fn enrol(world: &World, name: &str) -> Self {
        let secret = secret(world, None, false).await;
        Self::enrol_with(world, name, &secret).await.unwrap()
    }

    pub(crate) async fn enrol_with(world: &World, name: &str, secret: &str) -> Result<Self, Status> {
        let key = rcgen::KeyPair::generate().unwrap();
        Self::enrol_as(world, name, secret, &key, rand::random()).await
    }

    pub(crate) async fn enrol_as(
        world: &World,
        name: &str,
        secret: &str,
        key: &rcgen::KeyPair,
        receipt_seed: [u8; 32],
    ) -> Result<Self, Status> {
        let request = rcgen::CertificateParams::default()
            .serialize_request(key)
            .unwrap()
            .pem()
            .unwrap();
        let call = pb::EnrollRequest {
            secret: secret.to_owned(),
            machine_name: name.to_owned(),
            certificate_request_pem: request,
            receipt_public_key: SigningKey::from_seed(&receipt_seed).public().to_spki(),
        };
        let channel = world.channel_to_people(None).await;
        let enrolled = EnrollmentServiceClient::new(channel)
            .enroll(call)
            .await?
            .into_inner();
        Ok(Self {
            id: enrolled.machine_id.parse().unwrap(),
            credentials: Credentials {
                certificate: enrolled.certificate_pem,
                key: key.serialize_pem(),
            },
            ceiling: Some(open_ceiling()),
            generation: Generation(0),
            grants: BTreeMap::new(),
            policy: None,
            sequence: 0,
            stored: 0,
            previous: String::new(),
            receipt_seed,
            root: PublicKey::from_spki(&enrolled.root_public_key).unwrap(),
            keys: None,
        })
    }

    fn hello(&self) -> HostState {
        HostState {
            agent_version: "0.1.0".to_owned(),
            kernel_version: "6.1.0".to_owned(),
            boot_id: BootId(Uuid::from_u128(7)),
            generation: self.generation,
            digest: Digest::of(self.grants.keys()),
            keys: self.keys.as_ref().map(VerifiedKeys::number).unwrap_or_default(),
            policy: self.policy.as_ref().map(VerifiedPolicy::rank).unwrap_or_default(),
            host_guarded: Vec::new(),
            ceiling: self.ceiling.clone(),
        }
    }

    pub(crate) fn receipt(&mut self, grant: GrantId, event: Done, reason: &str, at: Timestamp) -> Vec<u8> {
        self.sequence += 1;
        let happening = Happening {
            grant,
            event,
            at,
            reason: reason.to_owned(),
        };
        let previous = self.previous.clone();
        let receipt = Receipt::new(
            self.id,
            BootId(Uuid::from_u128(7)),
            happening,
            self.sequence,
            previous,
        );
        let envelope = receipt.seal(&SigningKey::from_seed(&self.receipt_seed));
        self.previous = hex(&sha256(&envelope));
        envelope
    }

    /// Takes an assignment as an agent does, and says what became of it.
    pub(crate) fn take(
        &mut self,
        assignment: Assignment,
        now: Timestamp,
    ) -> (pb::AssignmentResult, Vec<Vec<u8>>) {
        let Assignment {
            generation,
            base,
            keys,
            policy,
            added,
            removed,
            digest,
        } = assignment;
        if base.is_some_and(|base| base != self.generation) {
            return (pb::AssignmentResult::NeedWhole, Vec::new());
        }
        if generation < self.generation || (base.is_some() && generation == self.generation) {
            return (pb::AssignmentResult::Refused, Vec::new());
        }
        if let Some(keys) = keys {
            self.keys = Some(VerifiedKeys::verify(&keys, &self.root).unwrap());
        }
        if let Some(policy) = policy {
            let policy = VerifiedPolicy::verify(&policy, self.keys.as_ref().unwrap(), self.id).unwrap();
            assert!(
                self.policy
                    .as_ref()
                    .is_none_or(|held| held.rank() <= policy.rank())
            );
            self.policy = Some(policy);
        }
        let gone: Vec<GrantId> = match base {
            Some(_) => removed,
            None => self
                .grants
                .keys()
                .filter(|id| added.iter().all(|new| new.id != **id))
                .copied()
                .collect(),
        };
        let mut receipts = Vec::new();
        for id in gone {
            if self
                .grants
                .remove(&id)
                .flatten()
                .is_some_and(|grant| grant.not_after > now)
            {
                receipts.push(self.receipt(id, Done::Closed, "REMOVED", now));
            }
        }
        for new in added {
            if self.grants.contains_key(&new.id) {
                continue;
            }
            let keys = self.keys.as_ref().unwrap();
            let verdict = new.envelope.verify(keys, self.id, self.ceiling.as_ref(), now);
            receipts.push(match &verdict {
                Ok(_) => self.receipt(new.id, Done::Opened, "", now),
                Err(rejected) => self.receipt(new.id, Done::Refused, rejected.code(), now),
            });
            self.grants
                .insert(new.id, verdict.ok().map(|verified| verified.grant().clone()));
        }
        assert_eq!(Digest::of(self.grants.keys()), digest);
        self.generation = generation;
        (pb::AssignmentResult::Accepted, receipts)
    }

    /// Connects and does as it is told, until the stream ends.
    pub(crate) async fn attend(self, world: &World) -> JoinHandle<Self> {
        Link::connect(self, world).await.unwrap().attend(world)
    }
}

/// A host's open stream.
pub(crate) struct Link {
    pub(crate) host: Host,
    pub(crate) say: mpsc::Sender<pb::ConnectRequest>,
    answers: Streaming<pb::ConnectResponse>,
    arrival: PartsInArrival,
    /// Instead of sending receipts, it keeps them.
    pub(crate) kept: Option<Vec<Vec<u8>>>,
}

impl Link {
    pub(crate) async fn connect(host: Host, world: &World) -> Result<Self, Status> {
        let channel = world.try_channel_to_agents(Some(&host.credentials)).await;
        let channel = channel.map_err(|error| Status::from_error(Box::new(error)))?;
        let (say, said) = mpsc::channel(64);
        // Hello is in the stream before anything is awaited.
        let first = [
            Said::Hello(host.hello().into()),
            Said::ClockQuestion(pb::ClockQuestion { number: 1 }),
        ];
        for message in first {
            say.send(pb::ConnectRequest {
                message: Some(message),
            })
            .await
            .unwrap();
        }
        let mut client = AgentServiceClient::new(channel);
        let answers = client.connect(ReceiverStream::new(said)).await?.into_inner();
        let link = Self {
            host,
            say,
            answers,
            arrival: PartsInArrival::default(),
            kept: None,
        };
        link.settle().await;
        Ok(link)
    }

    /// As an agent does: only when all its receipts are stored.
    async fn settle(&self) {
        if self.host.stored == self.host.sequence {
            let generation = self.host.generation.0;
            self.say(Said::Settled(pb::Settled { generation })).await;
        }
    }

    /// Does as it is told, until the stream ends.
    pub(crate) fn attend(mut self, world: &World) -> JoinHandle<Host> {
        let clock = world.clock.clone();
        tokio::spawn(async move {
            while let Some(answer) = self.next().await {
                self.obey(answer, clock.now()).await;
            }
            self.host
        })
    }

    pub(crate) async fn say(&self, message: Said) {
        // The stream may have ended; what comes next tells.
        drop(
            self.say
                .send(pb::ConnectRequest {
                    message: Some(message),
                })
                .await,
        );
    }

    /// `None`: the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Answer> {
        let answer = self.answers.message().await;
        answer.ok().flatten().and_then(|response| response.message)
    }

    /// Does what the server says. Gives the assignment it has taken, if it was one.
    pub(crate) async fn obey(&mut self, answer: Answer, now: Timestamp) -> Option<Generation> {
        let part = match answer {
            Answer::AssignmentPart(part) => part,
            Answer::ReceiptsStored(pb::ReceiptsStored { sequence }) => {
                self.host.stored = sequence;
                self.settle().await;
                return None;
            }
            Answer::ClockAnswer(_) | Answer::GoingAway(_) => return None,
        };
        let assignment = self.arrival.add(part).unwrap()?;
        let generation = assignment.generation;
        let (result, envelopes) = self.host.take(assignment, now);
        let reply = pb::AssignmentReply {
            generation: generation.0,
            result: result.into(),
            message: String::new(),
        };
        self.say(Said::AssignmentReply(reply)).await;
        if let Some(kept) = &mut self.kept {
            kept.extend(envelopes);
            return Some(generation);
        }
        for envelopes in envelopes.chunks(100).map(<[_]>::to_vec) {
            self.say(Said::Receipts(pb::Receipts { envelopes })).await;
        }
        self.settle().await;
        Some(generation)
    }

    /// Obeys until an answer of the wanted kind has come.
    pub(crate) async fn until<T>(&mut self, now: Timestamp, want: impl Fn(&Answer) -> Option<T>) -> T {
        let wait = async {
            loop {
                let answer = self.next().await.expect("the stream has ended");
                let wanted = want(&answer);
                self.obey(answer, now).await;
                if let Some(wanted) = wanted {
                    return wanted;
                }
            }
        };
        tokio::time::timeout(SOON, wait)
            .await
            .expect("the answer did not come")
    }
}
