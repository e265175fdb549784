//! What can be written on the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use nightlatch_core::id::{MachineName, Subject};
use nightlatch_core::rights::Role;

use crate::init::{NotAHost, check_host};

/// Decides who may reach which port of which machine, and signs it.
#[derive(Parser)]
#[command(name = "nightlatch-server", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The configuration file [default: /etc/nightlatch/server.toml, which may be missing]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The state directory, instead of the configuration file's
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make the state directory: certificate authority, keys, database, the first administrator
    #[command(after_help = "Example: nightlatch-server init --name control.example.org --name 192.0.2.1")]
    Init {
        /// A host name or address that the server is reached by; the first one stands in tokens
        #[arg(long = "name", required = true, num_args = 1.., value_name = "HOST|IP", value_parser = host)]
        names: Vec<String>,
    },
    /// Serve
    Run {
        /// Only read the configuration and the state, and say whether they can be used
        #[arg(long)]
        check_config: bool,
    },
    /// Enrolment tokens for machines
    #[command(subcommand)]
    Token(TokenCommand),
    /// Client certificates for people
    #[command(subcommand)]
    User(UserCommand),
    /// The root key, which signs the list of signing keys
    #[command(subcommand)]
    Root(RootCommand),
}

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Print a new token: good for one machine, once, for 24 hours
    #[command(after_help = "Example: nightlatch-server token create --machine web-1")]
    Create {
        /// The only machine name that it may enrol
        #[arg(long, value_name = "NAME")]
        machine: Option<MachineName>,
        /// Let it take over the name of a machine that is enrolled already
        #[arg(long, requires = "machine")]
        replace: bool,
    },
}

#[derive(Subcommand)]
pub enum UserCommand {
    /// Issue a certificate, good for 90 days; an earlier one of the same name no longer counts
    #[command(after_help = "Example: nightlatch-server user issue alice --role requester --out /root/alice")]
    Issue {
        name: Subject,
        /// reader, requester, approver, policy-editor, auditor or administrator; may be repeated
        #[arg(long = "role", required = true, value_name = "ROLE")]
        roles: Vec<Role>,
        /// Write PREFIX.pem and PREFIX.key [default: the name]
        #[arg(long, value_name = "PREFIX")]
        out: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum RootCommand {
    /// Copy the root key to a file, to be kept off this host
    Export { file: PathBuf },
    /// Take the root key off this host, once a copy is seen to be elsewhere
    Remove {
        /// Where a copy is [default: where it was exported to last]
        #[arg(long, value_name = "FILE")]
        copy: Option<PathBuf>,
    },
}

fn host(text: &str) -> Result<String, NotAHost> {
    check_host(text).map(|()| text.to_ascii_lowercase())
}
