//! The lab as the bench needs it: two machines, doors with doorkeepers, and a client of many addresses.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_bench::probe::{self, Doorkeeper, Porch};
use nightlatch_tests::lab::Lab;
use nightlatch_tests::machine::Machine;
use nightlatch_tests::netns::ip_batch;
use nightlatch_tests::plan::CLIENT;
use nightlatch_tests::process::Process;
use nightlatch_tests::wait;

use crate::PATIENCE;
use crate::caller::Caller;

/// Ports that the policy guards: one for requests, one for timing connects.
const GUARDED: u16 = 9000;
const GUARDED_PORCH: u16 = 9001;
const POLICY: [&str; 3] = ["22/tcp", "9000/tcp", "9001/tcp"];
/// Ports that nobody guards, and one for a table made by hand.
const PORCH: u16 = 9200;
const OTHER_PORCH: u16 = 9201;
const BY_HAND: u16 = 9300;

/// A door's silence is a shut one: an open one answers within a fraction of this.
const SILENCE: Duration = Duration::from_millis(50);

/// See the module's documentation. Whoever uses it is in the client's network namespace.
pub(crate) struct World<'l> {
    pub(crate) lab: &'l Lab,
    pub(crate) caller: Caller,
    _doorkeepers: [Doorkeeper; 2],
    porches: Porches,
    next_source: u16,
}

/// The doors whose connects are timed.
pub(crate) struct Porches {
    /// On a machine without any table, and once more.
    pub(crate) without_rules: Door,
    pub(crate) without_rules_again: Door,
    pub(crate) unguarded: Door,
    pub(crate) guarded: Door,
}

pub(crate) struct Door {
    pub(crate) at: SocketAddrV4,
    pub(crate) porch: Porch,
}

impl<'l> World<'l> {
    /// Nothing is guarded yet.
    pub(crate) fn make(lab: &'l Lab) -> Result<Self> {
        // All of the network for benchmarks (RFC 2544) is the client's. As a gateway it needs no ARP for each address.
        let anything_goes = "route add local 198.18.0.0/15 dev lo".to_owned();
        ip_batch(Some(&lab.client().netns()), &[anything_goes])?;
        for machine in lab.machines() {
            let way = format!("route add 198.18.0.0/15 via {}", CLIENT.ipv4);
            ip_batch(Some(&machine.netns()), &[way])?;
        }
        // Enrolled both, but only the first gets a policy: the second has no table.
        let (guarded, free) = (lab.machine(1), lab.machine(2));
        let answer = |port| Doorkeeper::answer(&guarded.netns(), at(guarded, port));
        let porch = |machine: Machine<'_>, port| -> Result<Door> {
            let at = at(machine, port);
            let porch = Porch::open(&machine.netns(), at)?;
            Ok(Door { at, porch })
        };
        Ok(Self {
            lab,
            caller: Caller::connect(lab)?,
            _doorkeepers: [answer(GUARDED)?, answer(BY_HAND)?],
            porches: Porches {
                without_rules: porch(free, PORCH)?,
                without_rules_again: porch(free, OTHER_PORCH)?,
                unguarded: porch(guarded, PORCH)?,
                guarded: porch(guarded, GUARDED_PORCH)?,
            },
            next_source: 0,
        })
    }

    pub(crate) const fn guarded_machine(&self) -> Machine<'l> {
        self.lab.machine(1)
    }

    pub(crate) const fn porches(&self) -> &Porches {
        &self.porches
    }

    /// Where requests open.
    pub(crate) const fn guarded(&self) -> SocketAddrV4 {
        at(self.guarded_machine(), GUARDED)
    }

    pub(crate) const fn by_hand(&self) -> SocketAddrV4 {
        at(self.guarded_machine(), BY_HAND)
    }

    pub(crate) fn agent(&self) -> Result<Process> {
        self.guarded_machine().agent_process()
    }

    pub(crate) fn server(&self) -> Result<Process> {
        self.lab.control().process()
    }

    /// An address of the client that nobody has asked for yet.
    pub(crate) fn fresh_source(&mut self) -> Ipv4Addr {
        self.next_source += 1;
        let [high, low] = self.next_source.to_be_bytes();
        Ipv4Addr::new(198, 19, high, low)
    }

    /// Sets the policy; the guarded door is shut when this returns.
    pub(crate) fn guard(&mut self) -> Result<()> {
        self.lab.guard(self.guarded_machine(), &POLICY)?;
        let (stranger, door) = (self.fresh_source(), self.guarded());
        wait::until_true("the guarded port is open", PATIENCE, || {
            Ok(!probe::connects(stranger, door, SILENCE)?)
        })
    }

    /// Ends all grants by taking the policy away, and sets it again.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.caller.delete_policy(&self.guarded_machine().name())?;
        self.settle()?;
        self.guard()?;
        self.settle()?;
        let open = self.caller.open_grants(&self.guarded_machine().name())?;
        ensure!(open == 0, "{open} grants are open without a policy");
        Ok(())
    }

    /// Waits until no more events come.
    pub(crate) fn settle(&mut self) -> Result<()> {
        const QUIET: Duration = Duration::from_millis(300);
        let mut last = (self.caller.last_event()?, Instant::now());
        wait::until_true("events do not cease", PATIENCE * 4, || {
            let now = self.caller.last_event()?;
            if now != last.0 {
                last = (now, Instant::now());
            }
            Ok(last.1.elapsed() > QUIET)
        })
    }

    /// Asserts that a door is shut for an address.
    pub(crate) fn expect_shut(&self, source: Ipv4Addr, door: SocketAddrV4) -> Result<()> {
        let open = probe::connects(source, door, Duration::from_millis(5))?;
        ensure!(!open, "{door} is open for {source}, which nobody asked for");
        Ok(())
    }

    /// Connects once, which must work at the first attempt.
    pub(crate) fn connect(&self, source: Ipv4Addr, door: SocketAddrV4) -> Result<Instant> {
        let connected = probe::connects(source, door, Duration::from_millis(900))
            .with_context(|| format!("{door} for {source}"))?;
        ensure!(connected, "{door} is shut for {source}, although it was opened");
        Ok(Instant::now())
    }
}

const fn at(machine: Machine<'_>, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(machine.addresses().ipv4, port)
}
