//! The server in one process: real TLS, real gRPC, a real database, agents that sign real receipts.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on fails"
)]

mod access;
mod bad_calls;
mod bounds;
mod commands;
mod console;
mod crowds;
mod damage;
mod ending;
mod enrolment;
mod host;
mod installation;
mod listeners;
mod pages;
mod policies;
mod repeats;
mod restored;
mod waiting;
mod world;
