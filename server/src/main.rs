//! The command `nightlatch-server`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use nightlatch_core::id::MachineName;
use nightlatch_core::time::Timestamp;
use nightlatch_server::arguments::{Arguments, Command, RootCommand, TokenCommand, UserCommand};
use nightlatch_server::causes::in_one_line;
use nightlatch_server::clock::{Clock, SystemClock};
use nightlatch_server::config::ServerConfig;
use nightlatch_server::server::Server;
use nightlatch_server::state::{ADMIN, State};
use nightlatch_server::{console, init};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Exit code of a command that can't be understood.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let done = match Arguments::try_parse() {
        Ok(arguments) => start(arguments),
        Err(answer) => match (
            answer.print().and_then(|()| io::stdout().flush()),
            answer.use_stderr(),
        ) {
            (_, true) => return ExitCode::from(USAGE),
            (printed, false) => printed.context("it can't be written to standard output"),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = in_one_line(error.as_ref());
            // Where nobody can be told, the exit code is all there is.
            drop(writeln!(io::stderr(), "error: {error}"));
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
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        // A log that can't be written ends no server.
        .log_internal_errors(false)
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
            tell(&format!(
                "made {}\nfirst administrator: {} and {}\nkeep a copy of the root key elsewhere: nightlatch-server root export FILE",
                state.directory().display(),
                state.path(&format!("{ADMIN}.pem")).display(),
                state.path(&format!("{ADMIN}.key")).display(),
            ))
        }
        Command::Run { check_config: true } => {
            Server::check(&config).await?;
            tell("the configuration and the state can be used")
        }
        Command::Run { check_config: false } => Box::pin(run(&config)).await,
        Command::Token(TokenCommand::Create { machine, replace }) => {
            create_token(&config, machine, replace, now).await
        }
        Command::User(UserCommand::Issue { name, roles, out }) => {
            let prefix = out.unwrap_or_else(|| PathBuf::from(name.as_str()));
            let roles = roles.into_iter().collect();
            let (certificate, key) = console::issue_user(&config, &name, roles, &prefix, now).await?;
            tell(&format!("wrote {} and {}", certificate.display(), key.display()))
        }
        Command::Root(RootCommand::Export { file }) => {
            console::export_root(&config, &file, now).await?;
            tell(&format!(
                "wrote {}: keep it where this host's thief can't reach it",
                file.display()
            ))
        }
        Command::Root(RootCommand::Remove { copy }) => {
            console::remove_root(&config, copy.as_deref(), now).await?;
            tell("removed the root key from this host")
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

/// A token whose secret nobody has got is taken back.
async fn create_token(
    config: &ServerConfig,
    machine: Option<MachineName>,
    replace: bool,
    now: Timestamp,
) -> anyhow::Result<()> {
    if is_nowhere(&io::stdout()) {
        bail!(
            "the token would be lost: standard output is closed or /dev/null, let it go to a terminal or a file"
        );
    }
    let token = console::create_token(config, machine, replace, now).await?;
    let Err(unwritten) = say(&token.text) else {
        return Ok(());
    };
    let withdrawn = console::withdraw_token(config, &token, SystemClock.now()).await;
    withdrawn.with_context(|| {
        format!(
            "the token can't be written to standard output ({unwritten}) and can't be taken back: it counts \
             until it expires, though nobody has it"
        )
    })?;
    Err(anyhow!(unwritten).context("the token can't be written to standard output, so it was taken back"))
}

/// Closed when this was started, it is /dev/null by now: what is written there is lost, and no error says so.
fn is_nowhere(out: &impl AsFd) -> bool {
    let device = |file: File| file.metadata().map(|found| found.rdev());
    let given = out.as_fd().try_clone_to_owned().map(File::from).and_then(device);
    let null = File::open("/dev/null").and_then(device);
    matches!((given, null), (Ok(given), Ok(null)) if given == null)
}

/// Says what was done; where that can't be said, what was done holds all the same.
fn tell(done: &str) -> anyhow::Result<()> {
    say(done).with_context(|| {
        let done = done.replace('\n', "; ");
        format!("it was done, but that can't be written to standard output ({done})")
    })
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
