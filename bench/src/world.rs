//! The lab as the bench needs it: two machines, doors with doorkeepers, and a client of many addresses.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_bench::PATIENCE;
use nightlatch_bench::caller::{Caller, Wish};
use nightlatch_bench::doors::Door;
use nightlatch_bench::probe::{self, Doorkeeper};
use nightlatch_tests::lab::Lab;
use nightlatch_tests::machine::Machine;
use nightlatch_tests::netns::ip_batch;
use nightlatch_tests::plan::CLIENT;
use nightlatch_tests::process::Process;
use nightlatch_tests::wait;

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
    doors: [Door; 4],
    next_source: u16,
    next_of_many: u32,
}

/// The doors whose connects are timed: the first two are on a machine without any table, and equal.
pub(crate) const DOORS: [&str; 4] = ["no rules at all", "no rules, again", "unguarded", "guarded, open"];

/// Each of many grants has an address of its own in this network, none of which is used twice.
const MANY: (u32, u32) = (
    u32::from_be_bytes([198, 18, 0, 1]),
    u32::from_be_bytes([198, 19, 0, 0]),
);

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
        let door = |machine: Machine<'_>, port| Door::open(&machine.netns(), at(machine, port));
        Ok(Self {
            lab,
            caller: Caller::connect(lab)?,
            _doorkeepers: [answer(GUARDED)?, answer(BY_HAND)?],
            doors: [
                door(free, PORCH)?,
                door(free, OTHER_PORCH)?,
                door(guarded, PORCH)?,
                door(guarded, GUARDED_PORCH)?,
            ],
            next_source: 0,
            next_of_many: MANY.0,
        })
    }

    pub(crate) const fn guarded_machine(&self) -> Machine<'l> {
        self.lab.machine(1)
    }

    pub(crate) const fn doors(&self) -> [&Door; 4] {
        self.doors.each_ref()
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

    /// Wishes for access to the guarded door, each from an address that nobody has asked for yet.
    pub(crate) fn wishes(&mut self, count: usize, wait: Duration) -> Result<impl Fn(usize) -> Wish + use<>> {
        let first = self.next_of_many;
        let next = u32::try_from(count)
            .ok()
            .and_then(|count| first.checked_add(count));
        self.next_of_many = next
            .filter(|next| *next <= MANY.1)
            .with_context(|| format!("no addresses left for {count} grants"))?;
        let (machine, port) = (self.guarded_machine().name(), self.guarded().port());
        Ok(move |number| Wish {
            machine: machine.clone(),
            port,
            source: Ipv4Addr::from(first + u32::try_from(number).unwrap_or_default()),
            length: Duration::from_secs(2 * 3600),
            wait,
        })
    }

    /// What is open of the guarded machine's ports.
    pub(crate) fn open_grants(&mut self) -> Result<usize> {
        self.caller.open_grants(&self.guarded_machine().name())
    }

    /// One who may knock at the guarded door among [`Self::doors`] while it is measured.
    pub(crate) fn open_for_long(&mut self, source: Ipv4Addr) -> Result<()> {
        let wish = Wish {
            machine: self.guarded_machine().name(),
            port: GUARDED_PORCH,
            source,
            length: Duration::from_secs(3600),
            wait: PATIENCE,
        };
        self.caller.open(&wish).map(drop)
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
        wait::until_true("grants are open without a policy", PATIENCE * 4, || {
            Ok(self.open_grants()? == 0)
        })?;
        self.settle()?;
        self.guard()?;
        self.settle()
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
