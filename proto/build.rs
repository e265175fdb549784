//! Compiles nightlatch.v1 without protoc, and keeps the descriptors for the reflection service.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "nightlatch/v1/access_service.proto",
        "nightlatch/v1/agent_service.proto",
        "nightlatch/v1/audit_service.proto",
        "nightlatch/v1/enrollment_service.proto",
        "nightlatch/v1/machine_service.proto",
    ];
    // compile_fds() emits no rerun-if-changed of its own.
    println!("cargo:rerun-if-changed=nightlatch");
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
