//! `break-glass`: root opens a guarded port on the console, whatever else doesn't work (docs/adr/0010-break-glass.md).
//!
//! The record comes first. An agent that lives acts on it; in the place of one that doesn't, this command changes the
//! table itself.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nightlatch_core::break_glass::{
    Asked, BreakGlass, Limits, MOST_OPEN, NotOpened, OfBoot, Opener, SHORTEST_REASON,
};
use nightlatch_core::id::BreakGlassId;
use nightlatch_core::port::{PortKey, PortPattern};
use nightlatch_core::request::Justification;
use nightlatch_core::ruleset::OpeningKey;
use nightlatch_core::signing::{PublicKey, SigningKey};
use nightlatch_core::time::{BootTime, Timestamp, parse_iso8601};
use nix::sys::signal::{SigSet, Signal};
use uuid::Builder;

use crate::causes::causes;
use crate::clock::{Clock, NoClock, SystemClock};
use crate::config::{AgentConfig, bounds_alone};
use crate::firewall::{Firewall, FirewallError, TableState};
use crate::ruleset_text::ports;

mod consoled;
pub mod folder;
mod loud;
mod opened;
mod unit;
pub mod watch;

pub use consoled::Consoled;
pub use folder::{Folders, Recorded};
pub use opened::Opened;
use opened::{By, hint};
pub use unit::Unit;

/// What a living agent has to act on a record.
const AGENT_PATIENCE: Duration = Duration::from_secs(2);
const AGENT_PACE: Duration = Duration::from_millis(50);
/// What the disk has for the host's own file. Without it, the narrowest bounds hold.
const FILE_PATIENCE: Duration = Duration::from_secs(1);
/// What the disk has for the key. Without it, one that is made for this use does as well.
const KEY_PATIENCE: Duration = Duration::from_secs(1);
/// By how much an opening in the kernel may end otherwise than recorded.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Why nothing was opened.
#[derive(Debug, thiserror::Error)]
pub enum NotBroken {
    #[error("break-glass is for root alone: run it as root")]
    NotRoot,
    #[error(transparent)]
    NotOpened(#[from] NotOpened),
    #[error(transparent)]
    Clock(#[from] NoClock),
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error(
        "Nightlatch guards nothing on this host now: see with `nft list ruleset` what else keeps others out"
    )]
    NothingGuarded,
    #[error("{asked} is not guarded here, so Nightlatch keeps nobody out of it: name one of {guarded}")]
    NotGuarded { asked: String, guarded: String },
    #[error("{MOST_OPEN} uses of break-glass are open already: wait for one of them to end")]
    TooMany,
    #[error("no key can be made to sign the record with: try again")]
    NoKey(#[source] io::Error),
    #[error("the record can't be written to {}, and nothing is opened without one: make room there", path.display())]
    NoRecord {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the table can't be changed: see docs/host.md for what to do on a console where break-glass doesn't work{}",
        hint(*unit)
    )]
    NotLetIn {
        unit: Unit,
        #[source]
        source: FirewallError,
    },
    #[error(
        "the table that guards this host went away meanwhile, or the time was over: nothing was opened{}",
        hint(*unit)
    )]
    Gone { unit: Unit },
}

/// While it lives no signal of a terminal or a session ends the command: between the opening and its lasting record
/// nothing may be lost.
pub struct Undisturbed(Option<SigSet>);

impl Undisturbed {
    pub fn begin() -> Self {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGQUIT]
            .into_iter()
            .collect();
        Self(signals.thread_block().is_ok().then_some(signals))
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        if let Some(signals) = self.0.take() {
            // What can't be undone ends with the command.
            signals.thread_unblock().ok();
        }
    }
}

/// A length as people write it: `15m`, `1h30m`, and `PT15M` as in the files.
///
/// # Errors
/// Whatever ISO 8601 doesn't know.
pub fn read_length(text: &str) -> Result<Duration, String> {
    let upper = text.to_ascii_uppercase();
    let iso = if upper.starts_with("PT") {
        upper
    } else {
        format!("PT{upper}")
    };
    parse_iso8601(&iso)
        .map_err(|_invalid| format!("`{text}` is not a length of time: write it as 15m, 1h or 90s"))
}

/// # Errors
/// Too short, too long, or with control characters.
pub fn read_reason(text: &str) -> Result<Justification, String> {
    Justification::try_from(text.to_owned())
        .ok()
        .filter(|reason| reason.as_str().chars().count() >= SHORTEST_REASON)
        .ok_or_else(|| {
            format!(
                "a reason has {SHORTEST_REASON} to {} characters and no control characters: say what has happened",
                Justification::LONGEST
            )
        })
}

/// Opens what is asked for, and returns as soon as it is open.
///
/// # Errors
/// Nothing was opened then.
pub fn break_glass(asked: &Asked, config: &Path, root: &Path) -> Result<Opened, NotBroken> {
    if !nix::unistd::geteuid().is_root() {
        return Err(NotBroken::NotRoot);
    }
    let limits = limits(config);
    asked.check(&limits)?;
    let clock = SystemClock::new()?;
    let mut firewall = Firewall::open()?;
    let guarded = firewall.read()?.map(|table| table.guarded).unwrap_or_default();
    let ports = guarded_ports(asked, &guarded)?;
    let folders = Folders::under(root);
    let key = signing_key(&folders)?;
    let at = (clock.boot_id(), clock.now(), clock.wall());
    let id = fresh_id(at.2).map_err(NotBroken::NoKey)?;
    let used = BreakGlass::new(id, asked, &ports, &limits, at, opener())?;
    let (envelope, key) = (used.seal(&key), key.public());
    // What the agent would refuse is not written in the first place.
    let of_boot = OfBoot::Id(clock.boot_id());
    BreakGlass::verify(
        &envelope,
        std::slice::from_ref(&key),
        &limits,
        of_boot,
        clock.now(),
    )?;
    let recorded = record(&folders, &limits, &clock, (&used, &envelope, &key));
    let ended = recorded.map_err(|error| match error {
        NotRecorded::TooMany => NotBroken::TooMany,
        NotRecorded::Io(source) => NotBroken::NoRecord {
            path: folders.live.path().to_owned(),
            source,
        },
    })?;
    let announced = loud::announce(root, &announcement(&used));
    let by = let_in(&used, &folders, &mut firewall, &clock).inspect_err(|_| {
        // An agent that comes back must not open what was said not to be.
        drop(folders.live.forget(&used));
    })?;
    Ok(Opened {
        used,
        envelope,
        key,
        by,
        unheard: announced.finish(),
        ended,
    })
}

/// A file that can't be read leaves the narrowest bounds, one with a fault elsewhere those that it names.
fn limits(config: &Path) -> Limits {
    let config = config.to_owned();
    let read = within(FILE_PATIENCE, move || {
        AgentConfig::read(&config)
            .map(|config| config.rules.break_glass)
            .map_err(|error| (causes(&error).to_string(), bounds_alone(&config)))
    });
    let (why, limits) = match read {
        Some(Ok(limits)) => return limits,
        Some(Err(found)) => found,
        None => ("the disk does not answer".to_owned(), Limits::default()),
    };
    tracing::warn!(
        "{why}; what can be read of [break_glass] is applied, and the narrowest bounds for the rest"
    );
    limits
}

fn guarded_ports(asked: &Asked, guarded: &BTreeSet<PortKey>) -> Result<BTreeSet<PortKey>, NotBroken> {
    if guarded.is_empty() {
        return Err(NotBroken::NothingGuarded);
    }
    let (found, unguarded) = asked.guarded_ports(guarded);
    if unguarded.is_empty() {
        return Ok(found);
    }
    let texts: Vec<String> = unguarded.iter().map(PortPattern::to_string).collect();
    Err(NotBroken::NotGuarded {
        asked: texts.join(", "),
        guarded: ports(guarded),
    })
}

fn fresh_id(time: Timestamp) -> io::Result<BreakGlassId> {
    let mut random = [0; 10];
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut random).map_err(io::Error::other)?;
    let millis = u64::try_from(time.micros()).unwrap_or_default() / 1_000;
    let id = Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
    Ok(BreakGlassId::new(id))
}

fn opener() -> Opener {
    const NOBODY: u32 = u32::MAX;
    let plain = |text: String| -> String { text.chars().filter(|c| !c.is_control()).take(64).collect() };
    let read = |path| std::fs::read_to_string(path).ok();
    let terminal = std::fs::read_link("/proc/self/fd/0").ok();
    let terminal = terminal.filter(|path| path.starts_with("/dev") && path != Path::new("/dev/null"));
    Opener {
        uid: nix::unistd::getuid().as_raw(),
        login_uid: read("/proc/self/loginuid")
            .and_then(|text| text.trim().parse().ok())
            .filter(|uid| *uid != NOBODY),
        sudo_user: std::env::var("SUDO_USER").ok().map(plain),
        terminal: terminal.map(|path| plain(path.display().to_string())),
    }
}

/// Who it was, for people.
pub fn opened_by(opener: &Opener) -> String {
    let Opener {
        uid,
        login_uid,
        sudo_user,
        terminal,
    } = opener;
    let mut text = format!("uid {uid}");
    if let Some(login_uid) = login_uid {
        text.push_str(&format!(", logged in as uid {login_uid}"));
    }
    if let Some(sudo_user) = sudo_user {
        text.push_str(&format!(", sudo from {sudo_user}"));
    }
    if let Some(terminal) = terminal {
        text.push_str(&format!(", at {terminal}"));
    }
    text
}

fn keys(used: &BreakGlass) -> BTreeSet<PortKey> {
    used.keys().collect()
}

fn announcement(used: &BreakGlass) -> String {
    let end = used.time.checked_add(used.length()).unwrap_or(used.time);
    format!(
        "Nightlatch: BREAK-GLASS opens {} to {} until {end:.0}: {} ({}; record {})",
        ports(&keys(used)),
        used.source,
        used.reason.as_str(),
        opened_by(&used.opener),
        used.id
    )
}

fn signing_key(folders: &Folders) -> Result<SigningKey, NotBroken> {
    let lasting = folders.lasting.clone();
    let kept = within(KEY_PATIENCE, move || {
        lasting.prepare()?;
        lasting.signing_key()
    });
    let why = match kept {
        Some(Ok(key)) => return Ok(key),
        Some(Err(error)) => causes(&error).to_string(),
        None => "the disk does not answer".to_owned(),
    };
    tracing::warn!("the host's key for break-glass can't be had, and one for this use alone is made: {why}");
    folder::fresh_key().map_err(NotBroken::NoKey)
}

enum NotRecorded {
    TooMany,
    Io(io::Error),
}

impl From<io::Error> for NotRecorded {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Gives the earlier ones that have ended.
fn record(
    folders: &Folders,
    limits: &Limits,
    clock: &impl Clock,
    (used, envelope, key): (&BreakGlass, &[u8], &PublicKey),
) -> Result<Vec<Recorded>, NotRecorded> {
    let live = &folders.live;
    live.prepare()?;
    let found = live.read()?;
    let (held, _) = found.in_force(limits, clock.boot());
    if held.len() >= MOST_OPEN {
        return Err(NotRecorded::TooMany);
    }
    let ended = live.thinned(found, clock.now());
    live.put(used, envelope, key)?;
    Ok(ended)
}

fn let_in(
    used: &BreakGlass,
    folders: &Folders,
    firewall: &mut Firewall,
    clock: &impl Clock,
) -> Result<By, NotBroken> {
    let source = used.source;
    let openings: Vec<OpeningKey> = used.keys().map(|key| OpeningKey { source, key }).collect();
    let is_there = |firewall: &mut Firewall| -> Result<bool, FirewallError> {
        let read_at = clock.now();
        let table = firewall.read()?;
        Ok(table.is_some_and(|table| is_open(&table, &openings, used.end, read_at)))
    };
    let until = clock.now().plus(AGENT_PATIENCE);
    while clock.now() < until {
        if is_there(firewall).is_ok_and(|is_there| is_there) {
            return Ok(By::Agent);
        }
        thread::sleep(AGENT_PACE);
    }
    let unit = if folders.is_whole_host {
        unit::stop()
    } else {
        Unit::Missing
    };
    let source = match firewall.let_in(&openings, used.end, || clock.now()) {
        Ok(true) => return Ok(By::Command(unit)),
        Ok(false) => return Err(NotBroken::Gone { unit }),
        Err(error) => error,
    };
    // A lost answer says nothing about what was done.
    match is_there(firewall) {
        Ok(true) => Ok(By::Command(unit)),
        Ok(false) => Err(NotBroken::NotLetIn { unit, source }),
        Err(_unread) => Ok(By::Unknown(unit, source)),
    }
}

fn is_open(table: &TableState, openings: &[OpeningKey], end: BootTime, now: BootTime) -> bool {
    openings.iter().all(|opening| match table.openings.get(opening) {
        Some(Some(remaining)) => remaining.saturating_add(TOLERANCE) >= end.since(now),
        Some(None) => true,
        None => false,
    })
}

/// What the work gives, unless it takes longer.
fn within<T: Send + 'static>(patience: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answers, found) = mpsc::sync_channel(1);
    // Nobody listens any more once the time is up.
    thread::Builder::new()
        .spawn(move || drop(answers.send(work())))
        .ok()?;
    found.recv_timeout(patience).ok()
}

/// How a child has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Well,
    Badly,
    /// It had not, and was killed.
    Late,
}

fn await_end(mut child: Child, patience: Duration) -> Ended {
    const PACE: Duration = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    while waited < patience {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ended::Well,
            Ok(Some(_)) | Err(_) => return Ended::Badly,
            Ok(None) => thread::sleep(PACE),
        }
        waited = waited.saturating_add(PACE);
    }
    // Nobody waits for its end: one that waits for a disk doesn't end by this.
    drop(child.kill());
    Ended::Late
}

#[cfg(test)]
mod tests;
