//! What others did to our table, for people.

use std::fmt;

/// Of one process, and of all that are told at once.
const MOST: usize = 8;
const LONGEST_NAME: usize = 32;

/// Changes of our table that weren't ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    by: Vec<(Option<Process>, Vec<Change>)>,
    /// The kernel may have told more than could be heard.
    has_missed: bool,
}

/// Who made a change, as the kernel names it. Neither is proof: a process gives itself its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub id: u32,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) verb: Verb,
    pub(super) object: Object,
    /// Of the object, or of what holds it.
    pub(super) name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Added,
    Deleted,
    Changed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Table,
    Chain,
    Rule,
    Set,
    Element,
    Other,
}

impl Touch {
    pub(super) fn of(by: Option<Process>, changes: Vec<Change>) -> Self {
        Self {
            by: vec![(by, changes)],
            has_missed: false,
        }
    }

    pub(super) const fn missed() -> Self {
        Self {
            by: Vec::new(),
            has_missed: true,
        }
    }

    #[cfg(test)]
    pub(crate) fn by(name: &str, id: u32) -> Self {
        let name = name.to_owned();
        let change = Change {
            verb: Verb::Deleted,
            object: Object::Table,
            name: String::new(),
        };
        Self::of(Some(Process { id, name }), vec![change])
    }

    /// Takes in what came after it, as much as a person wants to read.
    pub fn join(&mut self, later: Self) {
        self.has_missed |= later.has_missed;
        for (by, changes) in later.by {
            if let Some((_, known)) = self.by.iter_mut().find(|(known, _)| *known == by) {
                known.extend(changes);
                known.truncate(MOST);
            } else if self.by.len() < MOST {
                self.by.push((by, changes));
            }
        }
    }

    /// Whether it is known who did something, or that something was done at all.
    pub const fn is_certain(&self) -> bool {
        !self.by.is_empty()
    }
}

impl fmt::Display for Touch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.by.is_empty() {
            return f.write_str("who did it was missed");
        }
        for (place, (by, changes)) in self.by.iter().enumerate() {
            if place > 0 {
                f.write_str("; ")?;
            }
            match by {
                Some(Process { id, name }) => write!(f, "{name} (process {id})")?,
                None => f.write_str("somebody")?,
            }
            // With the table goes all that is in it.
            let whole = changes
                .iter()
                .filter(|change| change.object == Object::Table && change.verb == Verb::Deleted);
            let changes: Vec<&Change> = match whole.clone().next() {
                Some(_) => whole.collect(),
                None => changes.iter().collect(),
            };
            for (place, change) in changes.into_iter().enumerate() {
                write!(f, "{} {change}", if place > 0 { "," } else { "" })?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, object, name } = self;
        let verb = match verb {
            Verb::Added => "added",
            Verb::Deleted => "deleted",
            Verb::Changed => "changed",
        };
        match object {
            Object::Table => write!(f, "{verb} the table"),
            Object::Chain => write!(f, "{verb} chain {name}"),
            Object::Rule => write!(f, "{verb} a rule in {name}"),
            Object::Set => write!(f, "{verb} set {name}"),
            Object::Element => write!(f, "{verb} an element in {name}"),
            Object::Other => write!(f, "{verb} {name}"),
        }
    }
}

/// A name that others chose, fit for a log.
pub(super) fn tidy(bytes: &[u8]) -> String {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let tidy = bytes.iter().take(LONGEST_NAME).map(|byte| {
        if byte.is_ascii_graphic() {
            char::from(*byte)
        } else {
            '?'
        }
    });
    tidy.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(id: u32, verb: Verb, object: Object) -> Touch {
        let name = "gate".to_owned();
        let process = Process {
            id,
            name: "nft".to_owned(),
        };
        Touch::of(Some(process), vec![Change { verb, object, name }])
    }

    #[test]
    fn many_are_told_as_one_within_bounds() {
        let mut joined = touch(1, Verb::Deleted, Object::Rule);
        joined.join(touch(1, Verb::Deleted, Object::Table));
        joined.join(touch(2, Verb::Added, Object::Rule));
        joined.join(Touch::missed());
        assert_eq!(
            joined.to_string(),
            "nft (process 1) deleted the table; nft (process 2) added a rule in gate"
        );
        for id in 0..1000 {
            joined.join(touch(id, Verb::Added, Object::Chain));
            joined.join(touch(1, Verb::Added, Object::Chain));
        }
        assert!(joined.to_string().len() < 1000, "{joined}");
        assert!(joined.is_certain() && !Touch::missed().is_certain());
    }
}
