//! nightlatch-agent: the host's agent.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::wildcard_enum_match_arm
    )
)]

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use nightlatch_agent::arguments::{Arguments, Output, Verb};
use nightlatch_agent::break_glass::{self, Folders, Undisturbed};
use nightlatch_agent::clock::{Clock, SystemClock};
use nightlatch_agent::config::{AgentConfig, LogLevel, bounds_alone};
use nightlatch_agent::disable::{self, NotDisabled};
use nightlatch_agent::inspection::Inspection;
use nightlatch_agent::lockdown::{LockedDown, lockdown};
use nightlatch_agent::log::Log;
use nightlatch_agent::ruleset_text::write_ruleset;
use nightlatch_agent::state::StateDir;
use nightlatch_agent::status::{status, write_status};
use nightlatch_agent::verify::{verify, write_verdict};
use nightlatch_agent::{enroll, firewall, look, run};
use nightlatch_core::break_glass::Asked;
use nightlatch_core::host::HostRules;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        // Another one is in place already, which does as well.
    }
    match act(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            // One line with its causes; there is nowhere to say that it can't be written.
            drop(writeln!(io::stderr().lock(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn act(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments {
        config,
        state,
        root,
        verb,
    } = arguments;
    let state = StateDir::new(state);
    if let Verb::Enroll { token, name } = &verb {
        start_log(LogLevel::Warn);
        return join(token, name.as_deref(), &state);
    }
    if let Verb::Disable { yes, table_only } = verb {
        start_log(LogLevel::Warn);
        return turn_off(yes, table_only, &state);
    }
    if let Verb::BreakGlass(arguments) = &verb {
        start_log(LogLevel::Warn);
        return break_the_glass(&arguments.asked(), &config, &root);
    }
    let folders = Folders::under(&root);
    let read = AgentConfig::read(&config).inspect_err(|_| start_log(LogLevel::Info));
    let mut config = match (read, &verb) {
        (Err(error), Verb::Lockdown) => {
            let bare = HostRules {
                break_glass: bounds_alone(&config),
                ..HostRules::default()
            };
            let bare = with_console(bare, &folders)?;
            if let Err(error) = shut(&bare, false, &state, &folders) {
                tracing::error!("{error:#}");
            }
            return Err(error).context(
                "only what policy and table guard is shut, and no grant is open, because the host's own file \
                 can't be read: mend it and run lockdown again",
            );
        }
        (config, _) => config?,
    };
    config.rules = with_console(config.rules, &folders)?;
    let _last_words = if matches!(verb, Verb::Run) {
        let (log, last_words) = Log::start(io::stderr()).context("cannot start the log")?;
        start_log_to(move || log.clone(), config.log);
        Some(last_words)
    } else {
        start_log(config.log);
        None
    };
    match verb {
        Verb::Enroll { .. } | Verb::Disable { .. } | Verb::BreakGlass(_) => Ok(ExitCode::SUCCESS),
        Verb::Run => runtime()?
            .block_on(run::run(config, &state, folders))
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        Verb::Lockdown => shut(&config.rules, true, &state, &folders),
        Verb::Status { output } => show_status(&config, &state, output),
        Verb::Verify { file, output } => show_verdict(&config, &state, &file, output),
        Verb::Ruleset { json } => show_ruleset(&config, &state, json),
    }
}

fn show_status(config: &AgentConfig, state: &StateDir, output: Output) -> anyhow::Result<ExitCode> {
    let (status, wanted) = status(&config.rules, state, &SystemClock::new()?);
    print(&match output {
        Output::Text => text(|text| write_status(text, &status, &wanted))?,
        Output::Json => json(&status)?,
    })?;
    Ok(code_of(status.is_sound()))
}

fn show_verdict(
    config: &AgentConfig,
    state: &StateDir,
    file: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let verdict = verify(file, &inspect(config, state)?)?;
    print(&match output {
        Output::Text => text(|text| write_verdict(text, &verdict))?,
        Output::Json => json(&verdict)?,
    })?;
    Ok(code_of(verdict.accepted))
}

fn show_ruleset(config: &AgentConfig, state: &StateDir, as_json: bool) -> anyhow::Result<ExitCode> {
    let inspection = inspect(config, state)?;
    let now = inspection.boot.now;
    let wanted = inspection.ruleset();
    print(&if as_json {
        json(&firewall::rendering(&wanted, now))?
    } else {
        text(|text| write_ruleset(text, &wanted, now))?
    })?;
    for problem in inspection.problems {
        tracing::warn!("{problem}");
    }
    Ok(ExitCode::SUCCESS)
}

const fn code_of(is_well: bool) -> ExitCode {
    if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn join(token: &str, name: Option<&str>, state: &StateDir) -> anyhow::Result<ExitCode> {
    let now = SystemClock::new()?.wall();
    let joined = runtime()?.block_on(enroll::enroll(token, name, state, now))?;
    print(&format!(
        "joined as {} ({})\n",
        joined.machine_name, joined.machine_id
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn turn_off(yes: bool, table_only: bool, state: &StateDir) -> anyhow::Result<ExitCode> {
    let mut place = disable::place()?;
    let guarded = place.guarded()?;
    if !yes {
        ask(guarded.as_deref())?;
    }
    if !table_only {
        disable::stop_units()?;
    }
    let cleared = place.clear(state);
    if table_only {
        cleared?;
    } else {
        cleared.map_err(|reason| NotDisabled::StillShut(Box::new(reason)))?;
        disable::disable_units()?;
    }
    let told = place.told(guarded.as_deref());
    if table_only {
        print(&format!("{told}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let kept = state.path().display();
    print(&format!(
        "{told}\nkeys and ledger stay in {kept}; to turn it on again: systemctl enable --now nightlatch-lockdown \
         nightlatch-agent\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn ask(guarded: Option<&str>) -> Result<(), NotDisabled> {
    if !io::stdin().is_terminal() {
        return Err(NotDisabled::NotAsked);
    }
    let guarded = guarded.unwrap_or("nothing");
    let question = format!(
        "this host guards {guarded}; without the table its other rules alone decide who gets in. Turn it off? [y/N] "
    );
    let mut answer = String::new();
    io::stderr()
        .write_all(question.as_bytes())
        .and_then(|()| io::stdin().read_line(&mut answer))
        .map_err(NotDisabled::NoAnswer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(NotDisabled::NotWanted),
    }
}

fn shut(rules: &HostRules, has_file: bool, state: &StateDir, folders: &Folders) -> anyhow::Result<ExitCode> {
    let text = match lockdown(rules, has_file, state, folders)? {
        LockedDown::Applied { guarded, openings } => {
            format!("{guarded} ports are guarded, {openings} openings hold\n")
        }
        LockedDown::NothingGuarded => "nothing is guarded on this host, so there is no table\n".to_owned(),
        LockedDown::LeftAlone => "the table guards nothing and stays as it is\n".to_owned(),
        LockedDown::AgentRuns => "the agent runs and holds the ruleset already\n".to_owned(),
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// With what root has opened on the console.
fn with_console(rules: HostRules, folders: &Folders) -> anyhow::Result<HostRules> {
    let console = folders.in_force(&rules.break_glass, SystemClock::new()?.boot());
    Ok(HostRules { console, ..rules })
}

fn break_the_glass(asked: &Asked, config: &Path, root: &Path) -> anyhow::Result<ExitCode> {
    let undisturbed = Undisturbed::begin();
    let opened = break_glass::break_glass(asked, config, root)?;
    // Before it is told: whoever listens may have gone.
    if let Err(why) = opened.keep(root) {
        tracing::warn!("{why}");
    }
    print(&opened.told())?;
    drop(undisturbed);
    Ok(code_of(opened.is_certain()))
}

fn inspect(config: &AgentConfig, state: &StateDir) -> anyhow::Result<Inspection> {
    Ok(look::inspect(&config.rules, state, &SystemClock::new()?))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("cannot start the runtime")
}

fn start_log(level: LogLevel) {
    start_log_to(io::stderr, level);
}

fn start_log_to(writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static, level: LogLevel) {
    let ours = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("nightlatch", tracing::Level::from(level));
    let writer = fmt::layer()
        .with_writer(writer)
        .with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(ours).with(writer).init();
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(value)?))
}

fn text(write: impl FnOnce(&mut String) -> std::fmt::Result) -> anyhow::Result<String> {
    let mut text = String::new();
    write(&mut text)?;
    Ok(text)
}

fn print(text: &str) -> anyhow::Result<()> {
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .context("cannot write to standard output")
}
