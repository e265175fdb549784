//! How much is measured.

use std::time::Duration;

/// How often, how many, how long.
pub(crate) struct Sizes {
    /// Requests of each kind.
    pub(crate) asks: usize,
    pub(crate) ends: usize,
    pub(crate) ends_agent_dead: usize,
    /// Grants at once, and how often.
    pub(crate) published: &'static [(usize, usize)],
    /// How often 1,000 calls are made, 64 at a time.
    pub(crate) calls: usize,
    /// How long an idle process is looked at.
    pub(crate) idle: Duration,
    /// Rounds over all doors, and connects through each of them in a round.
    pub(crate) rounds: usize,
    pub(crate) connects: usize,
    /// What it takes when the machine has nothing else to do.
    pub(crate) expected: &'static str,
    /// Then something hangs.
    pub(crate) longest: Duration,
}

impl Sizes {
    pub(crate) const FULL: Self = Self {
        asks: 100,
        ends: 30,
        ends_agent_dead: 15,
        published: &[(1, 30), (100, 10), (1_000, 5), (10_000, 3)],
        calls: 3,
        idle: Duration::from_secs(30),
        rounds: 400,
        connects: 50,
        expected: "7 to 12 minutes",
        longest: Duration::from_secs(20 * 60),
    };
    pub(crate) const QUICK: Self = Self {
        asks: 20,
        ends: 10,
        ends_agent_dead: 5,
        published: &[(1, 10), (100, 3), (1_000, 2), (10_000, 1)],
        calls: 1,
        idle: Duration::from_secs(5),
        rounds: 80,
        connects: 50,
        expected: "two to three minutes",
        longest: Duration::from_secs(8 * 60),
    };
}
