//! A small world for the tests.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file uses its own part of it"
)]

mod host;
mod world;

#[allow(unused_imports, reason = "each test file uses its own part of it")]
pub use host::*;
#[allow(unused_imports, reason = "each test file uses its own part of it")]
pub use world::*;
