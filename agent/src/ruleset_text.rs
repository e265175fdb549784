//! A ruleset for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use nightlatch_core::port::PortKey;
use nightlatch_core::prefix::Prefix;
use nightlatch_core::ruleset::{End, Ruleset};
use nightlatch_core::time::{BootTime, format_iso8601};

/// Guarded ports, exceptions and openings, one thing a line.
///
/// # Errors
/// As `text` says.
pub fn write_ruleset(text: &mut impl Write, ruleset: &Ruleset, now: BootTime) -> std::fmt::Result {
    if ruleset.is_empty() {
        return writeln!(
            text,
            "nothing is guarded: there is no table of Nightlatch on this host"
        );
    }
    writeln!(text, "guarded: {}", ports(ruleset.guarded()))?;
    if !ruleset.unguarded_interfaces().is_empty() {
        let names: Vec<&str> = ruleset
            .unguarded_interfaces()
            .iter()
            .map(String::as_str)
            .collect();
        writeln!(text, "not guarded on: {}", names.join(", "))?;
    }
    writeln!(
        text,
        "udp flows end after: {}",
        format_iso8601(ruleset.udp_grace())
    )?;
    let mut openings: BTreeMap<(Prefix, End), Vec<PortKey>> = BTreeMap::new();
    for (opening, end) in ruleset.openings().sorted() {
        openings
            .entry((opening.source, *end))
            .or_default()
            .push(opening.key);
    }
    if openings.is_empty() {
        return writeln!(text, "open: nothing");
    }
    writeln!(text, "open:")?;
    for ((source, end), keys) in openings {
        let end = match end {
            End::Never => "always (trusted source)".to_owned(),
            End::At(end) => format!("for {}", format_iso8601(end.since(now))),
        };
        writeln!(text, "  {source} to {} {end}", ports(&keys))?;
    }
    Ok(())
}

/// Ports one after the other, neighbours as a range.
pub(crate) fn ports<'k>(keys: impl IntoIterator<Item = &'k PortKey>) -> String {
    let mut ranges: Vec<(PortKey, u16)> = Vec::new();
    for key in keys {
        match ranges.last_mut() {
            Some((first, last))
                if first.protocol == key.protocol && last.checked_add(1) == Some(key.port) =>
            {
                *last = key.port;
            }
            _ => ranges.push((*key, key.port)),
        }
    }
    let texts: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| {
            if first.port == last {
                first.to_string()
            } else {
                format!("{}-{last}/{}", first.port, first.protocol)
            }
        })
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::host::HostRules;
    use nightlatch_core::port::PortPattern;
    use nightlatch_core::ruleset::OpeningKey;
    use std::time::Duration;

    #[test]
    fn a_ruleset_reads_like_a_sentence() {
        let spans = |texts: &[&str]| {
            texts
                .iter()
                .flat_map(|text| text.parse::<PortPattern>().unwrap().spans().collect::<Vec<_>>())
                .collect()
        };
        let rules = HostRules {
            guarded: spans(&["22/tcp", "8000-8010/udp"]),
            trusted_sources: vec!["192.0.2.0/24".parse().unwrap()],
            udp_grace: Duration::from_secs(3600),
            ..HostRules::default()
        };
        let mut ruleset = rules.ruleset_alone();
        let key = *ruleset.guarded().first().unwrap();
        let now = BootTime::new(Duration::from_secs(100));
        let end = End::At(now.plus(Duration::from_secs(90)));
        ruleset.open(
            OpeningKey {
                source: "2001:db8::7".parse().unwrap(),
                key,
            },
            end,
        );
        let mut text = String::new();
        write_ruleset(&mut text, &ruleset, now).unwrap();
        assert_eq!(
            text,
            "guarded: 22/tcp, 8000-8010/udp\n\
             udp flows end after: PT1H\n\
             open:\n  \
             192.0.2.0/24 to 22/tcp, 8000-8010/udp always (trusted source)\n  \
             2001:db8::7/128 to 22/tcp for PT1M30S\n"
        );
        text.clear();
        write_ruleset(&mut text, &Ruleset::default(), now).unwrap();
        assert!(text.contains("nothing is guarded"));
    }
}
