//! What clap answers by itself: help, the version, and that a command line can't be understood.

use std::io::{self, IsTerminal as _, Write as _};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::echo;
use crate::failure::{Exit, Failure};
use crate::output::{self, Failed, Format, Output, plain, wants_colour};
use crate::record::ErrorRecord;

/// Writes it where it belongs.
pub(crate) fn answer(answer: &clap::Error) -> Exit {
    let is_error = answer.use_stderr();
    let is_terminal = if is_error {
        io::stderr().is_terminal()
    } else {
        io::stdout().is_terminal()
    };
    let rendered = answer.render();
    let text = if is_terminal && wants_colour() {
        rendered.ansi().to_string()
    } else {
        rendered.to_string()
    };
    let words = echo::words();
    if !is_error {
        return match Output::new(Format::Table).write(text.as_bytes()) {
            Ok(()) => Exit::Done,
            Err(failure) => {
                output::report(&failure);
                Failure::exit(&failure)
            }
        };
    }
    // With nobody left to read, the exit code still tells.
    drop(
        io::stderr()
            .lock()
            .write_all(echo::shortened(&text, &words).as_bytes()),
    );
    if wants_json(&words) {
        drop(Output::new(Format::Json).json(&Failed {
            error: record(answer),
        }));
    }
    Exit::Usage
}

/// Read by hand: a command line that can't be understood has no format.
fn wants_json(words: &[String]) -> bool {
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .take_while(|word| *word != "--")
        .collect();
    words.contains(&"--output=json") || words.windows(2).any(|pair| pair == ["--output", "json"])
}

fn record(error: &clap::Error) -> ErrorRecord {
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or_default();
    let field = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.as_str(),
        Some(ContextValue::Strings(arguments)) => arguments.first().map_or("", String::as_str),
        _ => "",
    };
    let missing = match error.kind() {
        ErrorKind::MissingRequiredArgument => format!(" {field}"),
        _ => String::new(),
    };
    ErrorRecord {
        code: "USAGE".to_string(),
        message: plain(&format!("{}{missing}", first.trim_start_matches("error: "))),
        // clap writes an argument with its value.
        field: plain(field.split_whitespace().next().unwrap_or_default()),
        machine: String::new(),
        hint: "for more information, try --help".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::CommandLine;
    use clap::Parser as _;

    #[test]
    fn an_error_for_programs_names_the_argument() {
        for (words, field, says) in [
            (
                &["nightlatch", "request", "web-1", "--reason", "x", "--port", "0"][..],
                "--port",
                "1 to 65535",
            ),
            (
                &["nightlatch", "request", "web-1", "--reason", "x"],
                "--port",
                "required",
            ),
            (
                &["nightlatch", "list", "grants", "--colour"],
                "--colour",
                "unexpected argument",
            ),
        ] {
            let ErrorRecord {
                field: named,
                message,
                ..
            } = record(&CommandLine::try_parse_from(words).unwrap_err());
            assert!(named == field && message.contains(says), "{named}: {message}");
        }
    }

    #[test]
    fn programs_are_answered_in_their_format_also_where_nothing_else_is_understood() {
        let says = |words: &[&str]| wants_json(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(says(&["fly", "--output", "json"]) && says(&["--output=json", "fly"]));
        assert!(!says(&["fly"]) && !says(&["done", "--", "--output", "json"]));
    }
}
