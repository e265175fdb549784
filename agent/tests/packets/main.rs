//! What the firewall promises, asked of a real kernel with packets between network namespaces. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../netns/mod.rs"]
mod netns;

mod changes;
mod fragments;
mod model;
mod openings;
mod redirects;
mod repairs;
mod sessions;
mod sleep;
mod tampering;
mod udp;

const SSH: &str = "192.0.2.1:22";
const SSH6: &str = "[2001:db8::1]:22";
const RDP: &str = "192.0.2.1:3389";
const RDP6: &str = "[2001:db8::1]:3389";

/// Longer than any test runs.
const LONG: u64 = 600;
