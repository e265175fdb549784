//! What travels on an agent's stream.

use nightlatch_core::assignment::{Assigned, Assignment, Digest, Generation};
use nightlatch_core::ceiling::Ceiling;
use nightlatch_core::grant::SignedGrant;
use nightlatch_core::keys::ListNumber;
use nightlatch_core::port::PortSpan;
use nightlatch_core::time::BootId;
use prost::Message;
use uuid::Uuid;

use super::ceiling::MOST_PORTS;
use super::{InvalidField, list, message, text};
use crate::pb;

/// The longest part of an assignment, in bytes.
pub const LONGEST_PART: usize = 128 * 1024;
/// The most parts of an assignment.
pub const MOST_PARTS: u32 = 1024;
/// The longest assignment, all its parts together, in bytes.
pub const LONGEST_ASSIGNMENT: usize = 32 * 1024 * 1024;

/// Who connects and what it has: a Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostState {
    pub agent_version: String,
    pub kernel_version: String,
    pub boot_id: BootId,
    /// The last assignment that the agent accepted; zero if none.
    pub generation: Generation,
    pub digest: Digest,
    pub keys: ListNumber,
    /// (epoch, number) of the signed policy that the agent has; zero if none.
    pub policy: (u64, u64),
    /// Guarded by the host's own file.
    pub host_guarded: Vec<PortSpan>,
    /// `None`: the host's file has none, so that it takes no grant.
    pub ceiling: Option<Ceiling>,
}

impl TryFrom<pb::Hello> for HostState {
    type Error = InvalidField;

    fn try_from(hello: pb::Hello) -> Result<Self, InvalidField> {
        let pb::Hello {
            agent_version,
            kernel_version,
            boot_id,
            generation,
            digest,
            keys_epoch,
            keys_number,
            policy_epoch,
            policy_number,
            host_guarded,
            ceiling,
        } = hello;
        let boot_id = Uuid::try_parse(&boot_id).map_err(|error| InvalidField::new("boot_id", error))?;
        Ok(Self {
            agent_version: text("agent_version", agent_version, 64)?,
            kernel_version: text("kernel_version", kernel_version, 256)?,
            boot_id: BootId(boot_id),
            generation: Generation(generation),
            digest: message("digest", digest)?,
            keys: ListNumber {
                epoch: keys_epoch,
                number: keys_number,
            },
            policy: (policy_epoch, policy_number),
            host_guarded: list("host_guarded", host_guarded, MOST_PORTS, TryInto::try_into)?,
            ceiling: ceiling
                .map(Ceiling::try_from)
                .transpose()
                .map_err(|error| error.within("ceiling"))?,
        })
    }
}

impl From<HostState> for pb::Hello {
    fn from(state: HostState) -> Self {
        let HostState {
            agent_version,
            kernel_version,
            boot_id,
            generation,
            digest,
            keys,
            policy: (policy_epoch, policy_number),
            host_guarded,
            ceiling,
        } = state;
        Self {
            agent_version,
            kernel_version,
            boot_id: boot_id.to_string(),
            generation: generation.0,
            digest: Some(digest.into()),
            keys_epoch: keys.epoch,
            keys_number: keys.number,
            policy_epoch,
            policy_number,
            host_guarded: host_guarded.into_iter().map(Into::into).collect(),
            ceiling: ceiling.map(Into::into),
        }
    }
}

impl TryFrom<pb::AssignmentDigest> for Digest {
    type Error = InvalidField;

    fn try_from(digest: pb::AssignmentDigest) -> Result<Self, InvalidField> {
        let pb::AssignmentDigest { count, sha256 } = digest;
        let sha256 = <[u8; 32]>::try_from(sha256.as_slice());
        Ok(Self {
            count,
            sha256: sha256.map_err(|error| InvalidField::new("sha256", error))?,
        })
    }
}

impl From<Digest> for pb::AssignmentDigest {
    fn from(digest: Digest) -> Self {
        let Digest { count, sha256 } = digest;
        Self {
            count,
            sha256: sha256.to_vec(),
        }
    }
}

/// Cuts an assignment into parts of at most [`LONGEST_PART`] bytes. Keys and policy go first.
pub fn parts(assignment: Assignment) -> Vec<pb::AssignmentPart> {
    let Assignment {
        generation,
        base,
        keys,
        policy,
        added,
        removed,
        digest,
    } = assignment;
    let empty = || pb::AssignmentPart {
        generation: generation.0,
        base: base.map(|base| base.0),
        // Set to the longest they can be until the count is known, so that lengths only shrink.
        part: u32::MAX,
        parts: u32::MAX,
        keys: Vec::new(),
        policy: Vec::new(),
        added: Vec::new(),
        removed: Vec::new(),
        digest: Some(digest.into()),
    };
    let mut current = pb::AssignmentPart {
        keys: keys.unwrap_or_default(),
        policy: policy.unwrap_or_default(),
        ..empty()
    };
    // Each entry costs its bytes, a tag and a length of at most three bytes.
    const FRAME: usize = 4;
    let mut length = current.encoded_len();
    let mut done = Vec::new();
    let mut room_for = |current: &mut pb::AssignmentPart, more: usize| {
        if length + more > LONGEST_PART {
            done.push(core::mem::replace(current, empty()));
            length = current.encoded_len();
        }
        length += more;
    };
    for id in removed {
        let id = id.to_string();
        room_for(&mut current, id.len() + FRAME);
        current.removed.push(id);
    }
    for Assigned { id, envelope } in added {
        let grant = pb::AssignedGrant {
            id: id.to_string(),
            envelope: envelope.as_bytes().to_vec(),
        };
        room_for(&mut current, grant.encoded_len() + FRAME);
        current.added.push(grant);
    }
    done.push(current);
    let count = u32::try_from(done.len()).unwrap_or(u32::MAX);
    for (number, part) in (1..).zip(&mut done) {
        part.part = number;
        part.parts = count;
    }
    done
}

/// Parts of an assignment that has not arrived whole. Holds at most [`LONGEST_ASSIGNMENT`] bytes.
#[derive(Default)]
pub struct PartsInArrival {
    begun: Option<Begun>,
}

struct Begun {
    assignment: Assignment,
    part: u32,
    parts: u32,
    bytes: usize,
}

impl PartsInArrival {
    /// Takes the next part, and gives the assignment with the last one. A first part begins anew.
    ///
    /// # Errors
    /// A part out of order or of another assignment, too many or too long ones, ids or digests that are none.
    /// What had arrived before is forgotten then.
    pub fn add(&mut self, part: pb::AssignmentPart) -> Result<Option<Assignment>, InvalidField> {
        let length = part.encoded_len();
        let begun = self.begun.take();
        let (number, parts, piece) = read_part(part)?;
        let begun = match begun {
            _ if number == 1 => Begun {
                assignment: piece,
                part: 1,
                parts,
                bytes: length,
            },
            Some(begun) => begun.and(number, parts, piece, length)?,
            None => {
                let reason = format_args!("part {number} came without the parts before it");
                return Err(InvalidField::new("part", reason));
            }
        };
        if begun.part == begun.parts {
            return Ok(Some(begun.assignment));
        }
        self.begun = Some(begun);
        Ok(None)
    }
}

impl Begun {
    fn and(self, part: u32, parts: u32, piece: Assignment, length: usize) -> Result<Self, InvalidField> {
        let Self {
            mut assignment,
            part: before,
            parts: expected,
            bytes,
        } = self;
        let bytes = bytes.saturating_add(length);
        let Assignment {
            generation,
            base,
            keys,
            policy,
            added,
            removed,
            digest,
        } = piece;
        if (generation, base, digest) != (assignment.generation, assignment.base, assignment.digest) {
            Err(InvalidField::new(
                "generation",
                "the part belongs to another assignment",
            ))
        } else if parts != expected || part != before.saturating_add(1) {
            let reason = format_args!("part {part} of {parts} came after part {before} of {expected}");
            Err(InvalidField::new("part", reason))
        } else if keys.is_some() || policy.is_some() {
            Err(InvalidField::new(
                "part",
                "keys and policy belong into the first part",
            ))
        } else if bytes > LONGEST_ASSIGNMENT {
            let reason = format_args!("together they are longer than {LONGEST_ASSIGNMENT} bytes");
            Err(InvalidField::new("parts", reason))
        } else {
            assignment.added.extend(added);
            assignment.removed.extend(removed);
            Ok(Self {
                assignment,
                part,
                parts,
                bytes,
            })
        }
    }
}

fn read_part(part: pb::AssignmentPart) -> Result<(u32, u32, Assignment), InvalidField> {
    let pb::AssignmentPart {
        generation,
        base,
        part,
        parts,
        keys,
        policy,
        added,
        removed,
        digest,
    } = part;
    if !(1..=MOST_PARTS).contains(&parts) || !(1..=parts).contains(&part) {
        let reason = format_args!("{part} of {parts} is not a part: at most {MOST_PARTS} are taken");
        return Err(InvalidField::new("part", reason));
    }
    let grant_id = |text: String| text.parse().map_err(|error| InvalidField::new("", error));
    let assigned = |grant: pb::AssignedGrant| {
        let pb::AssignedGrant { id, envelope } = grant;
        let id = id.parse().map_err(|error| InvalidField::new("id", error))?;
        Ok(Assigned {
            id,
            envelope: SignedGrant::from_bytes(envelope),
        })
    };
    let assignment = Assignment {
        generation: Generation(generation),
        base: base.map(Generation),
        keys: Some(keys).filter(|keys| !keys.is_empty()),
        policy: Some(policy).filter(|policy| !policy.is_empty()),
        added: list("added", added, usize::MAX, assigned)?,
        removed: list("removed", removed, usize::MAX, grant_id)?,
        digest: message("digest", digest)?,
    };
    Ok((part, parts, assignment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::id::GrantId;

    fn id(number: u128) -> GrantId {
        GrantId::new(Uuid::from_u128(number))
    }

    fn assignment(added: u128, envelope: usize, removed: u128) -> Assignment {
        Assignment {
            generation: Generation(7),
            base: Some(Generation(5)),
            keys: Some(vec![1; 1000]),
            policy: Some(vec![2; 16 * 1024]),
            added: (0..added)
                .map(|number| Assigned {
                    id: id(number),
                    envelope: SignedGrant::from_bytes(vec![3; envelope]),
                })
                .collect(),
            removed: (0..removed).map(id).collect(),
            digest: Digest::of([&id(1)]),
        }
    }

    fn arrive(parts: Vec<pb::AssignmentPart>) -> Result<Option<Assignment>, InvalidField> {
        let mut arrival = PartsInArrival::default();
        let mut last = None;
        for part in parts {
            assert_eq!(last, None);
            last = arrival.add(part)?;
        }
        Ok(last)
    }

    #[test]
    fn an_assignment_survives_its_parts_and_none_is_longer_than_allowed() {
        for (added, envelope, removed) in [(0, 0, 0), (1, 1200, 1), (500, 1200, 9000), (100, 16 * 1024, 0)] {
            let whole = assignment(added, envelope, removed);
            let parts = parts(whole.clone());
            assert!(parts.iter().all(|part| part.encoded_len() <= LONGEST_PART));
            assert_eq!(arrive(parts), Ok(Some(whole)));
        }
    }

    #[test]
    fn parts_out_of_order_or_of_another_assignment_are_refused() {
        let whole = parts(assignment(500, 1200, 0));
        assert!(whole.len() > 3);
        let check = |change: &dyn Fn(&mut Vec<pb::AssignmentPart>)| {
            let mut changed = whole.clone();
            change(&mut changed);
            assert!(arrive(changed).is_err());
        };
        check(&|parts| parts.swap(1, 2));
        check(&|parts| drop(parts.remove(1)));
        check(&|parts| drop(parts.remove(0)));
        check(&|parts| parts[1].generation = 8);
        check(&|parts| parts[1].base = None);
        check(&|parts| parts[1].parts = 2);
        check(&|parts| parts[0].parts = 5000);
        check(&|parts| parts[0].part = 0);
        check(&|parts| parts[1].digest = None);
        check(&|parts| parts[1].policy = vec![1]);
        check(&|parts| parts[1].added[0].id = "x".to_owned());
    }

    #[test]
    fn a_first_part_begins_anew() {
        let whole = assignment(500, 1200, 0);
        let sent = parts(whole.clone());
        let mut arrival = PartsInArrival::default();
        assert_eq!(arrival.add(sent[0].clone()), Ok(None));
        let last = sent.into_iter().map(|part| arrival.add(part)).last().unwrap();
        assert_eq!(last, Ok(Some(whole)));
    }

    #[test]
    fn an_endless_assignment_is_refused() {
        let mut arrival = PartsInArrival::default();
        let template = parts(assignment(0, 0, 0)).remove(0);
        let refused = (1..=MOST_PARTS).find_map(|number| {
            let grant = pb::AssignedGrant {
                id: id(1).to_string(),
                envelope: vec![0; 120 * 1024],
            };
            let first = number == 1;
            arrival
                .add(pb::AssignmentPart {
                    part: number,
                    parts: MOST_PARTS,
                    keys: if first { template.keys.clone() } else { Vec::new() },
                    policy: Vec::new(),
                    added: vec![grant],
                    ..template.clone()
                })
                .err()
        });
        assert_eq!(refused.unwrap().field, "parts");
    }

    #[test]
    fn a_hello_survives_the_wire() {
        let state = HostState {
            agent_version: "0.1.0".to_owned(),
            kernel_version: "6.1.0".to_owned(),
            boot_id: BootId(Uuid::from_u128(9)),
            generation: Generation(3),
            digest: Digest::of([]),
            keys: ListNumber { epoch: 1, number: 2 },
            policy: (1, 5),
            host_guarded: vec![
                "22/tcp"
                    .parse::<nightlatch_core::port::PortPattern>()
                    .unwrap()
                    .spans()
                    .next()
                    .unwrap(),
            ],
            ceiling: None,
        };
        assert_eq!(HostState::try_from(pb::Hello::from(state.clone())), Ok(state));
        let hello = pb::Hello {
            boot_id: "x".to_owned(),
            ..Default::default()
        };
        assert_eq!(HostState::try_from(hello).unwrap_err().field, "boot_id");
    }
}
