//! What was written on the command line, as errors repeat it: short, and without anything that steers a terminal.

use std::cmp::Reverse;
use std::env;

use crate::output::printable;

/// More of a value helps nobody to find it.
const MOST: usize = 100;
const SHOWN: usize = 60;

/// The process's own command line.
pub(crate) fn words() -> Vec<String> {
    env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// Shortens in `text` whatever comes from `words` and is too long or can't be printed.
pub(crate) fn shortened(text: &str, words: &[String]) -> String {
    let mut odd: Vec<String> = words
        .iter()
        .flat_map(|word| parts(word))
        .filter(|part| is_odd(part))
        .collect();
    odd.sort_by_key(|part| Reverse(part.len()));
    odd.iter().fold(text.to_string(), |text, part| {
        text.replace(part.as_str(), &short(part))
    })
}

/// The word itself, the value of `--option=value`, and what is between commas; names are read in small letters.
fn parts(word: &str) -> Vec<String> {
    let value = word.split_once('=').map(|(_, value)| value);
    let all = [Some(word), value].into_iter().flatten();
    all.flat_map(|part| std::iter::once(part).chain(part.split(',')))
        .flat_map(|part| [part.to_string(), part.to_ascii_lowercase()])
        .collect()
}

fn is_odd(part: &str) -> bool {
    !part.trim().is_empty() && (part.chars().count() > MOST || printable(part) != part)
}

fn short(part: &str) -> String {
    let count = part.chars().count();
    let shown = printable(
        &part
            .chars()
            .take(if count > MOST { SHOWN } else { count })
            .collect::<String>(),
    );
    if count > MOST {
        format!("{shown}… ({count} characters)")
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shorten(text: &str, words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        shortened(text, &words)
    }

    #[test]
    fn long_values_are_not_repeated_whole() {
        let long = "X".repeat(1000);
        let said = format!(
            "error: invalid value '{long}' for '--port': `{}` is odd\n",
            long.to_lowercase()
        );
        for word in [long.clone(), format!("--port={long}"), format!("22,{long}")] {
            let text = shorten(&said, &["request", &word]);
            assert!(text.len() < 300 && text.contains("… (1000 characters)"), "{text}");
            assert!(text.ends_with("is odd\n"));
        }
    }

    #[test]
    fn what_steers_a_terminal_is_not_repeated_as_it_is() {
        assert_eq!(
            shorten("no `a\u{1b}[2Jb`\n", &["a\u{1b}[2Jb"]),
            "no `a\u{fffd}[2Jb`\n"
        );
        assert_eq!(shorten("one\ntwo\n", &["\n"]), "one\ntwo\n");
    }
}
