//! In what a table is not the one that was made.

use std::fmt;

use super::set::SetName;

/// The first thing found that others have changed, or that lags behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift {
    /// What was done last isn't known, so nothing can be compared.
    Unknown,
    NoTable,
    /// There is one, and nothing is guarded.
    NeedlessTable,
    Flags,
    Sets,
    Chains,
    Rules(ForeignRule),
    Element(ForeignElement),
}

/// What is wrong with the rules of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    pub(super) chain: &'static str,
    pub(super) what: RuleFault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleFault {
    /// One that lets packets through has come in.
    Accepts,
    Added,
    Missing,
    Changed,
}

/// What is wrong with the elements of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignElement {
    pub(super) set: SetName,
    pub(super) what: ElementFault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementFault {
    Missing,
    Added,
    /// It ends at another time than it should.
    End,
}

impl Drift {
    /// For those who only ask about the frame of a table.
    pub(super) const fn part(self) -> &'static str {
        match self {
            Self::Unknown | Self::NoTable | Self::NeedlessTable | Self::Flags => "flags",
            Self::Sets => "sets",
            Self::Chains => "chains",
            Self::Rules(_) => "rules",
            Self::Element(_) => "elements",
        }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("what the table holds was not known"),
            Self::NoTable => f.write_str("the table was gone"),
            Self::NeedlessTable => f.write_str("there was a table where nothing is guarded"),
            Self::Flags => f.write_str("the table's flags were others"),
            Self::Sets => f.write_str("the table's sets were others"),
            Self::Chains => f.write_str("the table's chains were others"),
            Self::Rules(ForeignRule { chain, what }) => {
                let what = match what {
                    RuleFault::Accepts => "a foreign rule that accepts",
                    RuleFault::Added => "a foreign rule",
                    RuleFault::Missing => "a rule missing",
                    RuleFault::Changed => "a changed rule",
                };
                write!(f, "chain {chain} had {what}")
            }
            Self::Element(ForeignElement { set, what }) => {
                let what = match what {
                    ElementFault::Missing => "an element missing",
                    ElementFault::Added => "a foreign element",
                    ElementFault::End => "an element with another end",
                };
                write!(f, "set {set} had {what}")
            }
        }
    }
}
