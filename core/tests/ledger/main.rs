//! Assignments, restarts and reboots, as the ledger sees them.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

#[path = "../common/mod.rs"]
mod common;

mod assignments;
mod bounds;
mod guarding;
mod reading;
mod reboots;
