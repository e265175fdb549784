//! The command `nightlatch-server`.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use nightlatch_core::id::{MachineName, Subject};
use nightlatch_core::rights::Role;
use nightlatch_server::clock::{Clock, SystemClock};
use nightlatch_server::config::ServerConfig;
use nightlatch_server::server::Server;
use nightlatch_server::state::{ADMIN, State};
use nightlatch_server::{console, init};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Decides who may reach which port of which machine, and signs it.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    /// The configuration file [default: /etc/nightlatch/server.toml, which may be missing]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The state directory, instead of the configuration file's
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
enum TokenCommand {
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
enum UserCommand {
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
enum RootCommand {
    /// Copy the root key to a file, to be kept off this host
    Export { file: PathBuf },
    /// Take the root key off this host, once it was exported
    Remove,
}

fn host(text: &str) -> Result<String, String> {
    let is_address = text.parse::<IpAddr>().is_ok();
    if is_address || text.parse::<MachineName>().is_ok() {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!(
            "`{text}` is not a host name or address: write control.example.org, 192.0.2.1 or 2001:db8::1"
        ))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "the one place where a failed command says why"
            )]
            {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments {
        config,
        state,
        command,
    } = arguments;
    let mut config = ServerConfig::load(config.as_deref())?;
    if let Some(state) = state {
        config.state = std::path::absolute(&state).context("the current directory is gone")?;
    }
    let level = config.log.to_string();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime
        .context("no runtime can be started")?
        .block_on(carry_out(command, config))
}

async fn carry_out(command: Command, config: ServerConfig) -> anyhow::Result<()> {
    let now = SystemClock.now();
    match command {
        Command::Init { names } => {
            init::init(&config.state, &names, now).await?;
            let state = State::at(config.state);
            say(&format!(
                "made {}\nfirst administrator: {} and {}\nkeep a copy of the root key elsewhere: nightlatch-server root export FILE",
                state.directory().display(),
                state.path(&format!("{ADMIN}.pem")).display(),
                state.path(&format!("{ADMIN}.key")).display(),
            ));
            Ok(())
        }
        Command::Run { check_config: true } => {
            Server::check(&config).await?;
            say("the configuration and the state can be used");
            Ok(())
        }
        Command::Run { check_config: false } => run(&config).await,
        Command::Token(TokenCommand::Create { machine, replace }) => {
            say(&console::create_token(&config, machine, replace, now).await?);
            Ok(())
        }
        Command::User(UserCommand::Issue { name, roles, out }) => {
            let prefix = out.unwrap_or_else(|| PathBuf::from(name.as_str()));
            let roles = roles.into_iter().collect();
            let (certificate, key) = console::issue_user(&config, &name, roles, &prefix, now).await?;
            say(&format!("wrote {} and {}", certificate.display(), key.display()));
            Ok(())
        }
        Command::Root(RootCommand::Export { file }) => {
            console::export_root(&config, &file, now).await?;
            say(&format!(
                "wrote {}: keep it where this host's thief can't reach it",
                file.display()
            ));
            Ok(())
        }
        Command::Root(RootCommand::Remove) => {
            console::remove_root(&config, now).await?;
            say("removed the root key from this host");
            Ok(())
        }
    }
}

async fn run(config: &ServerConfig) -> anyhow::Result<()> {
    let server = Server::bind(config, Arc::new(SystemClock)).await?;
    let stopping = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
    // Nothing is read again on SIGHUP; without this it would end the server.
    let _hangup = signal(SignalKind::hangup()).context("SIGHUP can't be handled")?;
    let stop = stopping.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    info!(listen = %server.address()?, listen_agents = %server.agents_address()?, "ready");
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("systemd can't be told")?;
    Ok(server.serve(stopping).await?)
}

#[expect(clippy::print_stdout, reason = "a command's result")]
fn say(text: &str) {
    println!("{text}");
}
