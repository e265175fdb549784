//! The command `nightlatch-server`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use nightlatch_server::arguments::{Arguments, Command, RootCommand, TokenCommand, UserCommand};
use nightlatch_server::clock::{Clock, SystemClock};
use nightlatch_server::config::ServerConfig;
use nightlatch_server::server::Server;
use nightlatch_server::state::{ADMIN, State};
use nightlatch_server::{console, init};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

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
        Command::Run { check_config: false } => Box::pin(run(&config)).await,
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
