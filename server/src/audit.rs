//! Events as the server writes them: who, about which machine, with which facts.

use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::id::{MachineId, MachineName};
use nightlatch_core::rights::Caller;
use nightlatch_core::time::Timestamp;

/// The server itself.
pub const SERVER: &str = "server";
/// A command on the server's own host.
pub const CONSOLE: &str = "console";

pub fn person(caller: &Caller) -> String {
    format!("person/{}", caller.subject)
}

pub fn machine(name: &MachineName) -> String {
    format!("machine/{name}")
}

/// Whoever has not proved who they are: only where from is known.
pub fn anonymous(address: &str) -> String {
    format!("anonymous/{address}")
}

/// An event of what a caller did.
pub fn by(caller: &Caller, now: Timestamp, kind: EventKind, message: String) -> Event {
    let mut event = Event::new(now, kind, person(caller), message);
    event.address = Some(caller.address.to_canonical().to_string());
    event
}

/// The event, about a machine.
#[must_use]
pub fn about(mut event: Event, machine: MachineId, name: &MachineName) -> Event {
    event.machine = Some(machine);
    event.machine_name = Some(name.clone());
    event
}

/// The event, with a fact.
#[must_use]
pub fn with(mut event: Event, key: &str, value: impl ToString) -> Event {
    event.details.insert(key.to_owned(), value.to_string());
    event
}

/// A moment as sentences name it: people don't read microseconds.
pub fn to_the_second(at: Timestamp) -> Timestamp {
    let micros = at.micros();
    Timestamp::from_micros(micros - micros.rem_euclid(1_000_000)).unwrap_or(at)
}
