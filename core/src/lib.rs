//! The rules of access, as pure functions: no file, socket, clock, thread or runtime.
//!
//! Time is always an argument. Nothing in here can fail for a reason outside its arguments; `no_std`
//! makes the compiler watch over that.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::wildcard_enum_match_arm
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod assignment;
pub mod audit;
pub mod break_glass;
pub mod ceiling;
pub mod clock;
pub mod grant;
pub mod host;
pub mod id;
pub mod identity;
pub mod keys;
pub mod ledger;
pub mod openings;
pub mod policy;
pub mod port;
pub mod prefix;
pub mod receipt;
pub mod request;
pub mod rights;
pub mod ruleset;
pub mod signing;
pub mod time;
