//! Links the daemon so that it takes less of the machine's memory.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // A twentieth of the agent's resident memory was its table of relocations. Read since glibc 2.36 (Debian 12).
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
