//! The gRPC API `nightlatch.v1`: generated code, and its conversions from and to [`nightlatch_core`].
//!
//! Generated types are postcards, not furniture: read at the door, never carried in. This crate is the only
//! place where both worlds meet.

pub mod convert;
pub mod error;

/// The generated code of package `nightlatch.v1`.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    unreachable_pub,
    reason = "generated"
)]
pub mod pb {
    tonic::include_proto!("nightlatch.v1");

    /// For the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
