//! What can be written on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use nightlatch_core::break_glass::Asked;
use nightlatch_core::port::PortPattern;
use nightlatch_core::prefix::Prefix;
use nightlatch_core::request::Justification;

use crate::break_glass::{read_length, read_reason};
use crate::state::DEFAULT_FOLDER;

/// Keeps guarded ports shut and opens them for verified grants.
#[derive(Parser)]
#[command(
    name = "nightlatch-agent",
    version,
    after_help = "Example: nightlatch-agent status"
)]
pub struct Arguments {
    /// The host's own file.
    #[arg(
        long,
        global = true,
        default_value = "/etc/nightlatch/agent.toml",
        value_name = "FILE"
    )]
    pub config: PathBuf,
    /// Where keys, ledger and receipts are kept.
    #[arg(
        long,
        global = true,
        default_value = DEFAULT_FOLDER,
        value_name = "DIR"
    )]
    pub state: PathBuf,
    /// Beneath which break-glass is recorded; with another than this host's own no unit is touched.
    #[arg(long, global = true, hide = true, default_value = "/", value_name = "DIR")]
    pub root: PathBuf,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Joins an installation with a token of `nightlatch-server token create`.
    #[command(after_help = "Example: nightlatch-agent enroll nlt1_eyJzZWNyZXQi… --name web-1")]
    Enroll {
        /// The whole text, once, within 24 hours.
        token: String,
        /// What people will call this machine. The host's own name if not given.
        #[arg(long)]
        name: Option<String>,
    },
    /// Runs the agent until SIGTERM; the table stays.
    #[command(after_help = "Example: nightlatch-agent --config /etc/nightlatch/agent.toml run")]
    Run,
    /// Shuts the guarded ports, keeps valid grants open, and exits. For the boot, before the network.
    #[command(after_help = "Example: nightlatch-agent lockdown")]
    Lockdown,
    /// Turns it off on this host: stops the units for good and takes the table away. Keys and ledger stay.
    #[command(after_help = "Example: nightlatch-agent disable\n\n\
                      To turn it on again: systemctl enable --now nightlatch-lockdown nightlatch-agent")]
    Disable {
        /// Doesn't ask.
        #[arg(long)]
        yes: bool,
        /// Leaves the units alone; the agent must not run. For hosts without systemd, and for the package.
        #[arg(long)]
        table_only: bool,
    },
    /// For an emergency, on the console and for root alone: opens a guarded port, whatever else doesn't work.
    ///
    /// Needs neither the network nor a running agent, and every terminal, the journal and the server are told.
    /// The section break_glass of the host's own file bounds it.
    #[command(
        after_help = "Example: nightlatch-agent break-glass --port 22 --from 192.0.2.7 --for 15m \\\n             \
                      --reason 'the server is down, ticket 4711'"
    )]
    BreakGlass(BreakGlassArguments),
    /// Says what is guarded and open. Needs no running agent. Exit 1 if the table is not what it should be.
    #[command(after_help = "Example: nightlatch-agent status --output json")]
    Status {
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Says whether this host would take a grant, and why not. Exit 1 if it would not.
    #[command(
        after_help = "Example: nightlatch grant show 019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11 --envelope >grant.json\n         \
                      nightlatch-agent verify grant.json"
    )]
    Verify {
        /// A signed grant (DSSE envelope, JSON).
        #[arg(value_name = "GRANT-FILE")]
        file: PathBuf,
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Shows the ruleset that should hold now.
    #[command(after_help = "Example: nightlatch-agent ruleset --json | nft --check --json --file -")]
    Ruleset {
        /// As nft's own JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
pub struct BreakGlassArguments {
    /// A guarded port, such as 22 or 22/tcp; once for each.
    #[arg(long = "port", required = true, value_name = "PORT")]
    ports: Vec<PortPattern>,
    /// The address, or the prefix, of whoever needs to get in.
    #[arg(long = "from", value_name = "ADDRESS")]
    source: Prefix,
    /// How long it stays open: 15m, 1h, 90s.
    #[arg(long = "for", value_name = "LENGTH", value_parser = read_length)]
    length: Duration,
    /// What has happened, for those who read it later.
    #[arg(long, value_parser = read_reason)]
    reason: Justification,
}

impl BreakGlassArguments {
    pub fn asked(&self) -> Asked {
        let Self {
            ports,
            source,
            length,
            reason,
        } = self;
        Asked {
            ports: ports.clone(),
            source: *source,
            length: *length,
            reason: reason.clone(),
        }
    }
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
}
