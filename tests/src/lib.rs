//! The lab: a control server, a client and machines, each a network namespace on one bridge, with the real
//! binaries, a real sshd and real nftables. Tests, the demo and `make lab-up` all use this one.

pub mod chance;
pub mod client;
pub mod complaint;
pub mod console;
pub mod control;
pub mod database;
pub mod doors;
pub mod echo;
pub mod env_file;
pub mod extent;
pub mod forge;
pub mod guests;
pub mod lab;
pub mod machine;
pub mod netns;
pub mod plan;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod readiness;
pub mod scratch;
pub mod session;
pub mod small_disk;
pub mod transfer;
pub mod wait;
