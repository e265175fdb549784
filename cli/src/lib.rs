//! `nightlatch`: ask for access, end it, see what is open.

mod arguments;
mod bounded_file;
mod client;
mod connecting;
mod consequences;
mod echo;
mod ended;
mod ending;
mod events;
mod failure;
mod following;
mod grants;
mod keys;
mod listing;
mod machines;
mod naming;
mod output;
mod policy;
mod policy_file;
mod record;
mod request;
mod requests;
mod settings;
mod spinner;
mod toml_file;
mod usage;
mod when;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use arguments::{Command, CommandLine, GrantCommand, KeysCommand, ListCommand, PolicyCommand};
use failure::{Exit, Failure};
use output::Output;
use settings::Connection;

/// What can be written on the command line, for manual pages and completions.
pub fn command_line() -> clap::Command {
    CommandLine::command()
}

/// Does what the process's own command line says.
pub fn main() -> ExitCode {
    let CommandLine {
        connection,
        format,
        command,
    } = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(answer) => return usage::answer(&answer).into(),
    };
    let output = Output::new(format);
    let exit = run(command, &connection, &output).unwrap_or_else(|failure| {
        output.failed(&failure);
        failure.exit()
    });
    exit.into()
}

fn run(command: Command, connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    // One thread is plenty, and starts faster than several.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Start)?;
    runtime.block_on(Box::pin(perform(command, connection, output)))
}

async fn perform(command: Command, connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    match command {
        Command::Request(asked) => request::request(asked, connection, output).await,
        Command::Done(targets) => ending::done(targets, connection, output).await,
        Command::Revoke(targets) => ending::revoke(targets, connection, output).await,
        Command::List {
            what: ListCommand::Grants(filter),
        } => grants::list(filter, connection, output).await,
        Command::List {
            what: ListCommand::Machines,
        } => machines::list(connection, output).await,
        Command::List {
            what: ListCommand::Requests(filter),
        } => requests::list(filter, connection, output).await,
        Command::Grant {
            what: GrantCommand::Show(shown),
        } => grants::show(shown, connection, output).await,
        Command::Keys {
            what: KeysCommand::Export,
        } => keys::export(connection, output).await,
        Command::Policy {
            what: PolicyCommand::Show(shown),
        } => policy::show(shown, connection, output).await,
        Command::Policy {
            what: PolicyCommand::Set(wanted),
        } => policy::set(wanted, connection, output).await,
        Command::Policy {
            what: PolicyCommand::Delete(doomed),
        } => policy::delete(doomed, connection, output).await,
        Command::Events(filter) => events::events(filter, connection, output).await,
    }
}
