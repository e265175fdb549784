//! The file that tells outside tools where everything of a lab is, as shell assignments.

use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::plan::Addresses;

/// In the lab's folder: where its description is.
const NOTE: &str = "env-file";

/// Describes the lab in a file, which goes with the lab.
pub fn write(lab: &Lab, path: &Path) -> Result<()> {
    fs::write(path, render(lab)?).with_context(|| format!("writing {}", path.display()))?;
    let whole = fs::canonicalize(path).with_context(|| format!("finding {}", path.display()))?;
    fs::write(lab.dir().join(NOTE), whole.as_os_str().as_bytes()).context("noting where the lab is described")
}

/// Removes the description of the lab in this folder, unless by now it is another's.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let Ok(path) = fs::read(dir.join(NOTE)) else {
        return Ok(());
    };
    let path = PathBuf::from(std::ffi::OsString::from_vec(path));
    let ours = assignment("NL_DIR", &dir.display().to_string());
    let text = fs::read_to_string(&path).unwrap_or_default();
    if !text.lines().any(|line| line == ours) {
        return Ok(());
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The assignments, one a line. Names and meanings are a contract: add, never change.
fn render(lab: &Lab) -> Result<String> {
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
        writeln!(text, "{}", assignment(&name, &value)).context("writing to memory")?;
    }
    Ok(text)
}

fn assignment(name: &str, value: &str) -> String {
    format!("{name}='{}'", value.replace('\'', r"'\''"))
}
