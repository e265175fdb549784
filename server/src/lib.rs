//! The control server: decides, signs, records and publishes grants.

pub mod agents;
pub mod api;
pub mod arguments;
pub mod audit;
pub mod causes;
pub mod clock;
pub mod config;
pub mod console;
pub mod enrolment;
pub mod fleet;
pub mod holdings;
pub mod id;
pub mod identity;
pub mod init;
pub mod issuer;
pub mod listener;
pub mod policies;
pub mod receipts;
pub mod refusal;
pub mod server;
pub mod state;
pub mod store;
pub mod turned_away;
