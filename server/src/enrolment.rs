//! How a machine joins: its token is spent in the same change that makes the machine.

use std::net::IpAddr;
use std::sync::Arc;

use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::grant::Authority;
use nightlatch_core::id::{InstallationId, MachineId, MachineName};
use nightlatch_core::signing::{self, PublicKey};
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::resource::MachineRef;

use crate::fleet::Fleet;
use crate::identity::ca::CertificateAuthority;
use crate::identity::{Identity, Kind, fingerprint, token};
use crate::issuer::{deny_waiting, next_generation};
use crate::listener::guests::Source;
use crate::policies::{self, end_all};
use crate::refusal::{BadToken, Refusal};
use crate::store::connection::Connection;
use crate::store::machines::{self, Machine, NewMachine, SignedPolicy};
use crate::store::tokens::Use;
use crate::store::{Change, Store, StoreError, tokens};
use crate::turned_away::TurnedAway;
use crate::{audit, id};

/// Takes machines in.
pub struct Enrolment {
    pub store: Store,
    pub fleet: Arc<Fleet>,
    pub authority: Arc<Authority>,
    pub ca: Arc<CertificateAuthority>,
    pub installation: InstallationId,
    pub epoch: u64,
    /// Those whose token nobody knows.
    pub strangers: TurnedAway<Source>,
    /// By the hash of a token that is known.
    pub token_holders: TurnedAway<String>,
}

/// What a host asks for when it joins.
#[derive(Clone)]
pub struct Applicant {
    pub secret: String,
    pub name: MachineName,
    pub certificate_request_pem: String,
    pub receipt_key: PublicKey,
    /// The address it is seen at.
    pub address: IpAddr,
}

/// What a host that has joined is given.
pub struct Enrolled {
    pub id: MachineId,
    pub name: MachineName,
    pub certificate_pem: String,
}

impl Enrolment {
    /// Whether a token counts. Asked first: whoever has none must not be able to hold up the others' changes.
    ///
    /// # Errors
    /// A token that doesn't count.
    pub async fn expects(&self, applicant: &Applicant, now: Timestamp) -> Result<(), Refusal> {
        let found = find(&mut *self.store.read().await?, applicant, now).await;
        match found {
            Ok(_) => Ok(()),
            Err(refusal) => {
                self.record_refusal(applicant, &refusal, now).await?;
                Err(refusal)
            }
        }
    }

    /// # Errors
    /// A token that doesn't count, a name that is taken, a certificate request that is none.
    pub async fn enroll(&self, applicant: Applicant, now: Timestamp) -> Result<Enrolled, Refusal> {
        let mut change = self.store.change().await?;
        match self.admit(&mut change, &applicant, now).await {
            Ok((enrolled, replaced)) => {
                change.commit().await?;
                // A certificate that no longer counts ends its connection.
                if let Some(replaced) = replaced {
                    self.fleet.cut(replaced);
                    self.fleet.tell(replaced);
                }
                Ok(enrolled)
            }
            Err(refusal) => {
                drop(change);
                self.record_refusal(&applicant, &refusal, now).await?;
                Err(refusal)
            }
        }
    }

    async fn admit(
        &self,
        change: &mut Change,
        applicant: &Applicant,
        now: Timestamp,
    ) -> Result<(Enrolled, Option<MachineId>), Refusal> {
        let Applicant {
            secret: _,
            name,
            certificate_request_pem,
            receipt_key,
            address,
        } = applicant;
        let token = find(change.connection(), applicant, now).await?;
        let key = CertificateAuthority::requested_key(certificate_request_pem);
        if let Some(used) = &token.used {
            // Only whoever holds the keys that came with it the first time may use it again.
            let keys = key.map(|key| keys_sha256(&key, receipt_key)).ok();
            if keys.is_none_or(|keys| keys != used.keys_sha256) {
                return Err(USED);
            }
            return self.renew(change, applicant, used, now).await;
        }
        if let Some(only) = token.machine_name.as_ref().filter(|only| *only != name) {
            return Err(Refusal::TokenForOther(only.clone()));
        }
        let keys_sha256 = keys_sha256(&key?, receipt_key);
        let former = machines::find(change.connection(), &MachineRef::Name(name.clone())).await?;
        if former.is_some() && !token.may_replace {
            return Err(Refusal::NameTaken(name.clone()));
        }
        let id = MachineId::new(id::fresh(now));
        let identity = self.identity(id);
        let certificate = self
            .ca
            .issue_for_request(&identity, certificate_request_pem, now)?;
        if let Some(former) = &former {
            replace(change, former, now).await?;
        }
        let machine = NewMachine {
            id,
            name: name.clone(),
            fingerprint: fingerprint(certificate.der()),
            receipt_key: receipt_key.clone(),
        };
        machines::create(change.connection(), &machine, now).await?;
        let used = Use {
            at: now,
            machine: Some(id),
            keys_sha256,
        };
        tokens::mark_used(change.connection(), &token.secret_sha256, &used).await?;
        let message = match &former {
            None => "enrolled".to_owned(),
            Some(former) => format!(
                "enrolled in the place of {}, whose policy it takes over",
                former.id
            ),
        };
        let event = Event::new(now, EventKind::MachineEnrolled, audit::machine(name), message);
        let mut event = audit::about(event, id, name);
        event.address = Some(address.to_string());
        change.record(&event, None);
        if let Some(former) = &former {
            self.hand_over_policy(change, former, id, now).await?;
        }
        let enrolled = Enrolled {
            id,
            name: name.clone(),
            certificate_pem: certificate.pem(),
        };
        Ok((enrolled, former.map(|former| former.id)))
    }

    /// The answer that this machine never got, with a fresh certificate; the first one no longer counts.
    async fn renew(
        &self,
        change: &mut Change,
        applicant: &Applicant,
        used: &Use,
        now: Timestamp,
    ) -> Result<(Enrolled, Option<MachineId>), Refusal> {
        let id = used.machine.ok_or(USED)?;
        let machine = machines::by_id(change.connection(), id).await?;
        if machine.is_retired || machine.name != applicant.name {
            return Err(USED);
        }
        let identity = self.identity(id);
        let certificate = self
            .ca
            .issue_for_request(&identity, &applicant.certificate_request_pem, now)?;
        machines::set_fingerprint(change.connection(), id, &fingerprint(certificate.der())).await?;
        let message = "got another certificate with its token and the same keys: the first answer was lost";
        let actor = audit::machine(&machine.name);
        let event = Event::new(now, EventKind::MachineEnrolled, actor, message.to_owned());
        let mut event = audit::about(event, id, &machine.name);
        event.address = Some(applicant.address.to_string());
        event.reason = Some("ENROLLED_AGAIN".to_owned());
        change.record(&event, None);
        let enrolled = Enrolled {
            id,
            name: machine.name,
            certificate_pem: certificate.pem(),
        };
        Ok((enrolled, Some(id)))
    }

    fn identity(&self, machine: MachineId) -> Identity {
        Identity {
            installation: self.installation,
            kind: Kind::Machine,
            id: machine.to_string(),
        }
    }

    /// A host that was set up anew stays guarded.
    async fn hand_over_policy(
        &self,
        change: &mut Change,
        former: &Machine,
        id: MachineId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(policy) = &former.policy else {
            return Ok(());
        };
        let machine = machines::by_id(change.connection(), id).await?;
        let generation = machine.next_generation(now);
        let rank = (self.epoch, 1);
        let envelope = policies::sign(&self.authority, &machine, rank, Some(policy), now);
        let signed = SignedPolicy {
            policy: Some(policy),
            rank,
            envelope,
            generation,
        };
        machines::set_policy(change.connection(), id, signed, now).await
    }

    async fn record_refusal(
        &self,
        applicant: &Applicant,
        refusal: &Refusal,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let code = match refusal {
            Refusal::Token(_) => "TOKEN_INVALID",
            Refusal::NameTaken(_) => "NAME_TAKEN",
            Refusal::TokenForOther(_) => "TOKEN_FOR_OTHER_NAME",
            Refusal::Certificate(_) => "CERTIFICATE_REQUEST_INVALID",
            _ => return Ok(()),
        };
        // Whoever has no token at all must not be able to fill the log, nor to hide in it those who have one.
        let leave = if matches!(refusal, Refusal::Token(BadToken::Unknown)) {
            self.strangers.note(applicant.address.into(), now)
        } else {
            self.token_holders.note(token::hash(&applicant.secret), now)
        };
        let Some(leave) = leave else {
            return Ok(());
        };
        let address = applicant.address.to_string();
        let actor = audit::anonymous(&address);
        let mut event = Event::new(now, EventKind::MachineRefused, actor, refusal.to_string());
        event.address = Some(address);
        event.reason = Some(code.to_owned());
        let event = leave.told_in(audit::with(event, "asked_for", &applicant.name));
        let mut change = self.store.change().await?;
        change.record(&event, None);
        change.commit().await?;
        leave.written();
        Ok(())
    }
}

const USED: Refusal = Refusal::Token(BadToken::Used);

/// Hex SHA-256 of what a machine proves itself by.
fn keys_sha256(key: &[u8], receipt_key: &PublicKey) -> String {
    let [key, receipt_key] = [key, &receipt_key.to_spki()].map(signing::sha256);
    signing::hex(&signing::sha256(&[key, receipt_key].concat()))
}

async fn find(
    connection: &mut Connection,
    applicant: &Applicant,
    now: Timestamp,
) -> Result<tokens::Token, Refusal> {
    let token = tokens::find(connection, &token::hash(&applicant.secret)).await?;
    let token = token.ok_or(Refusal::Token(BadToken::Unknown))?;
    if token.expires_at <= now {
        Err(Refusal::Token(BadToken::Expired))
    } else {
        Ok(token)
    }
}

/// Takes name and certificate from the former machine and ends its grants.
async fn replace(change: &mut Change, former: &Machine, now: Timestamp) -> Result<(), StoreError> {
    next_generation(change, former, now).await?;
    end_all(
        change,
        &audit::machine(&former.name),
        former,
        "MACHINE_REPLACED",
        now,
    )
    .await?;
    deny_waiting(change, former, now).await?;
    machines::retire(change.connection(), former.id, now).await
}
