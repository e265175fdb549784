//! The host's ceiling.

use nightlatch_core::ceiling::Ceiling;

use super::time::{duration, read_duration};
use super::{InvalidField, list};
use crate::pb;

/// The most ports or ranges of a ceiling, or of what a host's file guards, that are read.
pub const MOST_PORTS: usize = 2048;

impl TryFrom<pb::Ceiling> for Ceiling {
    type Error = InvalidField;

    fn try_from(ceiling: pb::Ceiling) -> Result<Self, InvalidField> {
        let pb::Ceiling {
            ports,
            longest,
            max_ahead,
            widest_ipv4,
            widest_ipv6,
        } = ceiling;
        let bits = |field, number: u32, most| {
            let reason = format_args!("{number} is not a prefix length: 0 to {most}");
            u8::try_from(number)
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(|| InvalidField::new(field, reason))
        };
        Ok(Self {
            ports: list("ports", ports, MOST_PORTS, TryInto::try_into)?,
            longest: read_duration("longest", longest)?,
            max_ahead: read_duration("max_ahead", max_ahead)?,
            widest_ipv4: bits("widest_ipv4", widest_ipv4, 32)?,
            widest_ipv6: bits("widest_ipv6", widest_ipv6, 128)?,
        })
    }
}

impl From<Ceiling> for pb::Ceiling {
    fn from(ceiling: Ceiling) -> Self {
        let Ceiling {
            ports,
            longest,
            max_ahead,
            widest_ipv4,
            widest_ipv6,
        } = ceiling;
        Self {
            ports: ports.into_iter().map(Into::into).collect(),
            longest: Some(duration(longest)),
            max_ahead: Some(duration(max_ahead)),
            widest_ipv4: widest_ipv4.into(),
            widest_ipv6: widest_ipv6.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    #[test]
    fn a_ceiling_survives_the_wire_and_needs_all_its_fields() {
        let ceiling = Ceiling {
            ports: vec!["22/tcp".parse().unwrap(), "3389".parse().unwrap()],
            longest: Duration::from_secs(3600),
            max_ahead: Duration::ZERO,
            widest_ipv4: 24,
            widest_ipv6: 64,
        };
        let sent = pb::Ceiling::from(ceiling.clone());
        assert_eq!(Ceiling::try_from(sent.clone()), Ok(ceiling));
        for (bad, field) in [
            (
                pb::Ceiling {
                    widest_ipv4: 33,
                    ..sent.clone()
                },
                "widest_ipv4",
            ),
            (
                pb::Ceiling {
                    widest_ipv6: 300,
                    ..sent.clone()
                },
                "widest_ipv6",
            ),
            (
                pb::Ceiling {
                    longest: None,
                    ..sent.clone()
                },
                "longest",
            ),
            (
                pb::Ceiling {
                    max_ahead: None,
                    ..sent
                },
                "max_ahead",
            ),
        ] {
            assert_eq!(Ceiling::try_from(bad).unwrap_err().field, field);
        }
    }
}
