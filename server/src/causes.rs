//! An error as people and logs read it.

use std::error::Error;

/// The error and its causes, in one line.
pub fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some libraries' errors end with what their cause says.
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    fn chain(texts: &[&'static str]) -> Link {
        let (text, rest) = texts.split_first().unwrap();
        Link {
            text,
            source: (!rest.is_empty()).then(|| Box::new(chain(rest))),
        }
    }

    #[test]
    fn no_cause_is_told_twice() {
        for (texts, said) in [
            (&["a"][..], "a"),
            (&["a", "b", "c"], "a: b: c"),
            (
                &["can't be opened", "database: (26) none", "(26) none"],
                "can't be opened: database: (26) none",
            ),
        ] {
            assert_eq!(in_one_line(&chain(texts)), said);
        }
    }
}
