//! The host's agent: verifies grants for itself and keeps the firewall equal to what they justify now.
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod alarm;
pub mod arguments;
pub mod break_glass;
pub mod causes;
pub mod certificate;
mod channel;
pub mod clock;
pub mod comparison;
pub mod config;
pub mod disable;
pub mod enforcer;
pub mod enroll;
pub mod firewall;
pub mod frame_file;
pub mod frames;
pub mod identity;
pub mod inspection;
pub mod ledger_file;
pub mod lockdown;
pub mod log;
pub mod look;
pub mod meanwhile;
pub mod outbox;
pub mod ruleset_text;
pub mod run;
pub mod server_link;
pub mod server_tls;
pub mod startup;
pub mod state;
pub mod status;
pub mod token;
pub mod verify;
pub mod writer;

#[cfg(test)]
#[path = "../../core/tests/common/world.rs"]
mod world;
