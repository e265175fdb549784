//! Writes the manual pages and completions of the three programs, from their command lines, for the packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory, Parser};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

/// Writes FOLDER/PACKAGE/man/*, and FOLDER/PACKAGE/SHELL/* for bash, zsh and fish.
#[derive(Parser)]
struct Arguments {
    folder: PathBuf,
}

fn main() -> Result<()> {
    let Arguments { folder } = Arguments::parse();
    for (program, section) in [
        (nightlatch_cli::command_line(), "1"),
        (nightlatch_agent::arguments::Arguments::command(), "8"),
        (nightlatch_server::arguments::Arguments::command(), "8"),
    ] {
        let folder = folder.join(program.get_name());
        write_completions(&program, &folder)?;
        let pages = folder.join("man");
        make(&pages)?;
        let mut program = program.disable_help_subcommand(true);
        // Names the commands below as they are typed: `nightlatch list grants`.
        program.build();
        write_pages(&program, section, &pages)?;
    }
    Ok(())
}

fn write_completions(program: &Command, folder: &Path) -> Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let folder = folder.join(shell.to_string());
        make(&folder)?;
        let mut program = program.clone();
        let name = program.get_name().to_owned();
        generate_to(shell, &mut program, name, &folder)
            .with_context(|| format!("writing to {}", folder.display()))?;
    }
    Ok(())
}

fn write_pages(command: &Command, section: &str, folder: &Path) -> Result<()> {
    let page = Man::new(command.clone())
        .section(section)
        .source(format!("Nightlatch {}", env!("CARGO_PKG_VERSION")))
        .manual("Nightlatch");
    let path = folder.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text).context("rendering a manual page")?;
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    command
        .get_subcommands()
        .try_for_each(|command| write_pages(command, section, folder))
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}
