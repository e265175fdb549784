//! What can be written on the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

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

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
}
