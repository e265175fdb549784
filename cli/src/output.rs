//! How results and errors are written: tables for people, JSON for programs, colour for terminals only.

use std::cell::Cell;
use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Color, ColumnConstraint, ContentArrangement, Table};
use serde::Serialize;

use crate::echo;
use crate::failure::Failure;
use crate::record::ErrorRecord;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// What a state means for the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Pending,
    Bad,
    Past,
}

/// One text of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    text: String,
    tone: Tone,
}

impl Field {
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: printable(&text.into()),
            tone,
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl<T: Into<String>> From<T> for Field {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

#[derive(Serialize)]
pub(crate) struct Failed {
    pub(crate) error: ErrorRecord,
}

/// Standard output.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    is_terminal: bool,
    colour: bool,
    /// Set once the reader has gone, as `head` does: then nothing more is written, and that is no error.
    closed: Cell<bool>,
    /// Whether anything has been written.
    begun: Cell<bool>,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self {
            format,
            is_terminal,
            colour: is_terminal && wants_colour(),
            closed: Cell::new(false),
            begun: Cell::new(false),
        }
    }

    pub(crate) const fn is_json(&self) -> bool {
        matches!(self.format, Format::Json)
    }

    pub(crate) const fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(crate) const fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// # Errors
    /// The bytes can't be written, for another reason than a reader who left.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        if self.closed.get() {
            return Ok(());
        }
        self.begun.set(true);
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed.set(true);
                Ok(())
            }
            written => written.map_err(Failure::Write),
        }
    }

    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        self.write(format!("{text}\n").as_bytes())
    }

    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Write(error.into()))?;
        self.line(&text)
    }

    /// Tells of a failure: people on standard error, programs also where they look for the result.
    pub(crate) fn failed(&self, failure: &Failure) {
        report(failure);
        if self.is_json() && !self.begun.get() {
            // What can't be written here is told on standard error already.
            drop(self.json(&Failed {
                error: failure.record(),
            }));
        }
    }

    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn table(&self, header: &[&str], rows: Vec<Vec<Field>>) -> Result<(), Failure> {
        let width = if self.is_terminal {
            Table::new().width()
        } else {
            None
        };
        self.line(&table(header, rows, width, self.colour))
    }
}

/// A table that fits `width`, where there is one to fit.
fn table(header: &[&str], rows: Vec<Vec<Field>>, width: Option<u16>, colour: bool) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .force_no_tty();
    if let Some(width) = width {
        table.set_width(width);
    }
    if colour {
        table.enforce_styling();
    }
    let cell = |text: &str| comfy_table::Cell::new(text);
    if !header.is_empty() {
        table.set_header(
            header
                .iter()
                .map(|title| cell(title).add_attribute(Attribute::Bold)),
        );
    }
    for row in rows {
        table.add_row(row.into_iter().map(|Field { text, tone }| match tone {
            Tone::Plain => cell(&text),
            Tone::Good => cell(&text).fg(Color::Green),
            Tone::Pending => cell(&text).fg(Color::Yellow),
            Tone::Bad => cell(&text).fg(Color::Red),
            Tone::Past => cell(&text).add_attribute(Attribute::Dim),
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    // Ids are there to be copied.
    let constrained = header.iter().position(|title| *title == "ID");
    if let Some(column) = constrained.and_then(|position| table.column_mut(position)) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    table.trim_fmt()
}

/// Texts come from hosts and people too: none of them may steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| {
            if letter.is_control() || is_invisible(letter) {
                '\u{fffd}'
            } else {
                letter
            }
        })
        .collect()
}

/// Characters that break lines, turn the direction of text around (Unicode UAX #9), or don't show at all. Those
/// that join and part letters (U+200C, U+200D) stay: some scripts are written with them.
const fn is_invisible(letter: char) -> bool {
    matches!(letter,
        '\u{2028}' | '\u{2029}'
        | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{061c}'
        | '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{00ad}' | '\u{034f}' | '\u{180b}'..='\u{180f}' | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}'
        | '\u{e0000}'..='\u{e007f}')
}

/// What people wrote is echoed, but not at any length and not where it would steer the terminal.
pub(crate) fn plain(text: &str) -> String {
    printable(&echo::shortened(text, &echo::words()))
}

pub(crate) fn wants_colour() -> bool {
    let unset = |name| env::var_os(name).is_none_or(|value| value.is_empty());
    // https://no-color.org
    unset("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes the `error:` and `hint:` lines.
pub(crate) fn report(failure: &Failure) {
    error(failure);
    if let Some(text) = failure.hint() {
        hint(text);
    }
}

pub(crate) fn error(text: impl Display) {
    to_stderr("error:", "31", &text.to_string());
}

pub(crate) fn warn(text: impl Display) {
    to_stderr("warning:", "33", &text.to_string());
}

pub(crate) fn hint(text: impl Display) {
    to_stderr("hint:", "36", &text.to_string());
}

fn to_stderr(label: &str, colour: &str, text: &str) {
    let text = plain(text);
    let mut stderr = io::stderr().lock();
    let written = if stderr.is_terminal() && wants_colour() {
        writeln!(stderr, "\u{1b}[1;{colour}m{label}\u{1b}[0m {text}")
    } else {
        writeln!(stderr, "{label} {text}")
    };
    // With nobody left to read, the exit code still tells.
    drop(written);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants() -> (Vec<&'static str>, Vec<Vec<Field>>) {
        let header = vec![
            "ID", "MACHINE", "STATE", "PERSON", "PORTS", "SOURCES", "ENDS", "REASON",
        ];
        let row: Vec<Field> = vec![
            "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11".into(),
            "web-1.example.org".into(),
            Field::toned("open", Tone::Good),
            "alice".into(),
            "22/tcp, 3389/udp".into(),
            "192.0.2.7/32, 2001:db8::7/128".into(),
            "2026-11-22 16:04:05 +01:00, in 59m 58s".into(),
            "the disk is full, ticket 4711".into(),
        ];
        (header, vec![row.clone(), row])
    }

    #[test]
    fn a_table_fits_the_terminal_at_any_width() {
        for width in [60, 80, 120, 300] {
            let (header, rows) = grants();
            let text = table(&header, rows, Some(width), false);
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= usize::from(width), "{longest} > {width}\n{text}");
        }
        let (header, rows) = grants();
        assert!(!table(&header, rows, Some(1), false).is_empty());
    }

    #[test]
    fn without_a_terminal_a_row_is_one_line_and_has_no_colour() {
        let (header, rows) = grants();
        let text = table(&header, rows, None, false);
        assert_eq!(text.lines().count(), 3);
        assert!(!text.contains('\u{1b}'));
        assert!(text.lines().all(|line| line.trim_end() == line));
        let (header, rows) = grants();
        assert!(table(&header, rows, None, true).contains('\u{1b}'));
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        assert_eq!(
            printable("a\u{1b}[2Jb\nc\u{202e}d"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d"
        );
        assert_eq!(printable("Größe 字"), "Größe 字");
        assert_eq!(
            printable("a\u{2028}b\u{200b}c\u{feff}d\u{e0041}"),
            "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}"
        );
        assert_eq!(printable("نامه\u{200c}ای"), "نامه\u{200c}ای");
    }
}
