//! What can be written on the command line. The arguments of a verb stand beside the verb.

use clap::{Parser, Subcommand};

use crate::output::Format;
use crate::settings::Connection;
use crate::{ending, events, grants, policy, request, requests};

const EXAMPLES: &str = "\
Examples:
  nightlatch request web-1 --port 22 --for 1h --reason 'disk full, ticket 4711'
  nightlatch list grants --live
  nightlatch done --machine web-1

Settings are taken from the options, then from NIGHTLATCH_SERVER, _CA, _CERT and _KEY, then from
~/.config/nightlatch/config.toml, then from /etc/nightlatch/cli.toml:
  server = \"https://control.example.org:7443\"
  ca = \"ca.pem\"
  cert = \"alice.pem\"
  key = \"alice.key\"

Exit codes: 0 done, 1 refused or failed, 2 usage, 3 taken but not in effect on the host yet,
4 done, but the result could not be written, 130 interrupted.";

/// Just-in-time access: ask for a port of a machine to be opened to you, for a while.
#[derive(Debug, Parser)]
#[command(name = "nightlatch", version, propagate_version = true, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// How results are written.
    #[arg(long = "output", global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub(crate) format: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Request(request::Request),
    Done(ending::Done),
    Revoke(ending::Revoke),
    /// List grants, access requests or machines.
    #[command(after_help = "Example:\n  nightlatch list grants --live")]
    List {
        #[command(subcommand)]
        what: ListCommand,
    },
    /// Look at one grant.
    #[command(after_help = "Example:\n  nightlatch grant show 019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11")]
    Grant {
        #[command(subcommand)]
        what: GrantCommand,
    },
    /// The public keys that grants are signed with.
    #[command(after_help = "Example:\n  nightlatch keys export > keys.pem")]
    Keys {
        #[command(subcommand)]
        what: KeysCommand,
    },
    /// What may be asked for on a machine.
    #[command(after_help = "Example:\n  nightlatch policy show web-1")]
    Policy {
        #[command(subcommand)]
        what: PolicyCommand,
    },
    Events(events::Filter),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ListCommand {
    Grants(grants::Filter),
    Requests(requests::Filter),
    /// List the machines, by name.
    #[command(after_help = "Example:\n  nightlatch list machines --output json")]
    Machines,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GrantCommand {
    Show(grants::Shown),
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Print the public keys that hosts accept grants from, as PEM.
    #[command(after_help = "Example:\n  nightlatch keys export > keys.pem")]
    Export,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    Show(policy::Shown),
    Set(policy::Wanted),
    Delete(policy::Doomed),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn every_subcommand_shows_an_example() {
        fn check(command: &clap::Command) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("\n  nightlatch "),
                "{} has no example",
                command.get_name()
            );
            command.get_subcommands().for_each(check);
        }
        CommandLine::command().debug_assert();
        check(&CommandLine::command());
    }

    #[test]
    fn every_example_is_a_valid_command() {
        fn check(command: &clap::Command) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            for line in help.lines().filter_map(|line| line.strip_prefix("  nightlatch ")) {
                let line = line.split(" > ").next().unwrap_or_default();
                // Quoted words of the examples hold blanks; nothing else of the shell is used in them.
                let words = line
                    .split('\'')
                    .enumerate()
                    .flat_map(|(position, part)| match position % 2 {
                        0 => part
                            .split_whitespace()
                            .map(ToString::to_string)
                            .collect::<Vec<_>>(),
                        _ => vec![part.to_string()],
                    });
                let all = std::iter::once("nightlatch".to_string()).chain(words);
                CommandLine::try_parse_from(all).unwrap_or_else(|error| panic!("{line}: {error}"));
            }
            command.get_subcommands().for_each(check);
        }
        check(&CommandLine::command());
    }

    #[test]
    fn bad_input_is_refused_with_the_option_and_the_limit() {
        let request = ["nightlatch", "request", "web-1", "--port", "22", "--reason", "x"];
        for (more, says) in [
            (&["--port", "0"][..], "outside 1 to 65535"),
            (&["--for", "90"], "write it as 90m, 1h30m or PT3H"),
            (&["--for", "0s"], "at least one second"),
            (&["--until", "25:00"], "write 18:30"),
            (&["--for", "1h", "--until", "18:30"], "cannot be used with"),
            (&["--from", "192.0.2.7/24"], "did you mean 192.0.2.0/24"),
            (&["--wait", "--no-wait"], "cannot be used with"),
            (&["--timeout", "2d"], "at most"),
            (&["--reason", "a\u{7}b"], "control characters"),
            (&["-x_y"], "unexpected argument"),
            (&["web_1"], "not a machine name"),
        ] {
            let all = request
                .iter()
                .filter(|word| !more.contains(&"--reason") || !["--reason", "x"].contains(word));
            let error = CommandLine::try_parse_from(all.chain(more))
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{more:?}: {error}");
        }
    }
}
