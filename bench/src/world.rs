//! The lab as the bench needs it: two machines, doors with doorkeepers, and a client of many addresses.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_bench::probe::{self, Doorkeeper};
use nightlatch_tests::lab::Lab;
use nightlatch_tests::machine::Machine;
use nightlatch_tests::netns::ip_batch;
use nightlatch_tests::plan::CLIENT;
use nightlatch_tests::process::Process;
use nightlatch_tests::wait;

use crate::PATIENCE;
use crate::caller::Caller;

/// A port that the policy guards, one that nobody guards, and one for a table made by hand.
pub(crate) const GUARDED: u16 = 9000;
const UNGUARDED: u16 = 9200;
const BY_HAND: u16 = 9300;
const POLICY: [&str; 2] = ["22/tcp", "9000/tcp"];

/// A door's silence is a shut one: an open one answers within a fraction of this.
const SILENCE: Duration = Duration::from_millis(50);

/// See the module's documentation. Whoever uses it is in the client's network namespace.
pub(crate) struct World<'l> {
    pub(crate) lab: &'l Lab,
    pub(crate) caller: Caller,
    doorkeepers: Vec<Doorkeeper>,
    next_source: u16,
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
        let mut world = Self {
            lab,
            caller: Caller::connect(lab)?,
            doorkeepers: Vec::new(),
            next_source: 0,
        };
        for door in [world.guarded(), world.unguarded(), world.by_hand()] {
            world.post_doorkeeper(world.guarded_machine(), door)?;
        }
        for door in [world.without_rules(), world.without_rules_again()] {
            world.post_doorkeeper(world.free_machine(), door)?;
        }
        Ok(world)
    }

    fn post_doorkeeper(&mut self, machine: Machine<'_>, door: SocketAddrV4) -> Result<()> {
        self.doorkeepers.push(Doorkeeper::answer(&machine.netns(), door)?);
        Ok(())
    }

    pub(crate) const fn guarded_machine(&self) -> Machine<'l> {
        self.lab.machine(1)
    }

    /// Enrolled like the other, but without a policy: no table.
    const fn free_machine(&self) -> Machine<'l> {
        self.lab.machine(2)
    }

    pub(crate) const fn guarded(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.guarded_machine().addresses().ipv4, GUARDED)
    }

    pub(crate) const fn unguarded(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.guarded_machine().addresses().ipv4, UNGUARDED)
    }

    pub(crate) const fn by_hand(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.guarded_machine().addresses().ipv4, BY_HAND)
    }

    pub(crate) const fn without_rules(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.free_machine().addresses().ipv4, UNGUARDED)
    }

    pub(crate) const fn without_rules_again(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.free_machine().addresses().ipv4, BY_HAND)
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
