//! The file that tells outside tools where everything of a lab is, as shell assignments.

use std::fmt::Write;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::plan::Addresses;

/// The assignments, one a line. Names and meanings are a contract: add, never change.
pub fn render(lab: &Lab) -> Result<String> {
    let control = lab.control();
    let names: Vec<String> = lab.machines().map(|machine| machine.name()).collect();
    let state = |file: &str| control.state().join(file).display().to_string();
    let mut assignments = vec![
        ("NL_SERVER".to_owned(), control.url()),
        ("NL_CA".to_owned(), state("ca.pem")),
        ("NL_ADMIN_CERT".to_owned(), state("admin.pem")),
        ("NL_ADMIN_KEY".to_owned(), state("admin.key")),
        (
            "NL_CLIENT_NETNS".to_owned(),
            lab.client().netns().name().to_owned(),
        ),
        ("NL_CONTROL_NETNS".to_owned(), control.netns().name().to_owned()),
        ("NL_BIN".to_owned(), lab.binaries().display().to_string()),
        ("NL_MACHINES".to_owned(), names.join(" ")),
        ("NL_SERVER_PID".to_owned(), control.process()?.pid().to_string()),
        ("NL_SSH_KEY".to_owned(), lab.login_key().display().to_string()),
        ("NL_DIR".to_owned(), lab.dir().display().to_string()),
    ];
    for machine in lab.machines() {
        let Addresses { ipv4, ipv6 } = machine.addresses();
        for (part, value) in [
            ("NAME", machine.name()),
            ("NETNS", machine.netns().name().to_owned()),
            ("IP4", ipv4.to_string()),
            ("IP6", ipv6.to_string()),
            ("AGENT_PID", machine.agent_process()?.pid().to_string()),
            ("AGENT_CONFIG", machine.config().display().to_string()),
            ("AGENT_STATE", machine.state().display().to_string()),
        ] {
            assignments.push((format!("NL_M{}_{part}", machine.number()), value));
        }
    }
    let mut text = String::new();
    for (name, value) in assignments {
        writeln!(text, "{name}='{}'", value.replace('\'', r"'\''")).context("writing to memory")?;
    }
    Ok(text)
}
