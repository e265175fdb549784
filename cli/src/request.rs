//! `nightlatch request`: ask for access, wait for the hosts, say how to connect.

use std::time::Duration;

use clap::Args;
use nightlatch_core::grant::MOST_PARTS;
use nightlatch_core::port::PortPattern;
use nightlatch_core::request::{InvalidJustification, Justification, Span};
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::access::{MOST_MACHINES, Source, Wish};
use serde::Serialize;
use tokio::time::Instant;

use crate::client::Client;
use crate::connecting::{self, Way};
use crate::failure::{Exit, Failure, SHOWS_GRANTS};
use crate::following::{Patience, awaited, follow, is_settled, verdict};
use crate::naming::MachineRef;
use crate::output::{self, Output, printable};
use crate::record::{BriefGrant, ErrorRecord, OutcomeRecord, OutcomeState, RequestRecord};
use crate::settings::Connection;
use crate::spinner::Spinner;
use crate::when::{self, Until};

const EXAMPLES: &str = "\
Examples:
  nightlatch request web-1 --port 22 --reason 'disk full, ticket 4711'
  nightlatch request web-1 web-2 --port 22/tcp --port 8000-8010/tcp --for 90m --reason 'release 1.4'
  nightlatch request db-1 --port 5432 --from 192.0.2.0/28 --until 18:30 --wait --reason 'migration'

Exit codes: 0 open on all machines, 1 refused (the reason is told), 2 usage, 3 approved, not open yet,
4 approved or open, but the result could not be written.";

/// How long the first call waits: hosts that are there have opened by then, and the answer says so at once.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// Ask for ports of machines to be opened to you, and wait until they are.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Request {
    /// Names or ids of 1 to 64 machines.
    #[arg(required = true, value_name = "MACHINE")]
    machines: Vec<MachineRef>,
    /// A port or range, with or without protocol: 22, 22/tcp, 8000-8010/udp. May be repeated.
    #[arg(
        long = "port",
        short = 'p',
        required = true,
        value_delimiter = ',',
        value_name = "PORT[/PROTOCOL]"
    )]
    ports: Vec<PortPattern>,
    /// Where you connect from: an address, a prefix, or `me`. May be repeated.
    #[arg(
        long = "from",
        value_delimiter = ',',
        value_name = "SOURCE",
        default_value = "me",
        value_parser = connecting::source
    )]
    sources: Vec<Source>,
    /// For how long, from the moment the host opens: 1h, 90m, 1h30m, PT3H.
    #[arg(long = "for", value_name = "LENGTH", default_value = "1h", allow_hyphen_values = true, value_parser = when::parse_request_length)]
    length: Duration,
    /// Until when, instead of a length: 18:30 on your clock, or 2026-11-22T18:30:00Z.
    #[arg(
        long,
        value_name = "TIME",
        conflicts_with = "length",
        allow_hyphen_values = true
    )]
    until: Option<Until>,
    /// Why, in your own words: 1 to 1000 characters.
    #[arg(long, short = 'r', value_name = "TEXT", value_parser = reason)]
    reason: Justification,
    /// How long to wait for the hosts.
    #[arg(long, value_name = "LENGTH", default_value = "10s", value_parser = when::parse_long_wait, allow_hyphen_values = true)]
    timeout: Duration,
    /// Wait as long as it can still succeed.
    #[arg(long, conflicts_with_all = ["timeout", "no_wait"])]
    wait: bool,
    /// Don't wait for the hosts.
    #[arg(long, conflicts_with = "timeout")]
    no_wait: bool,
}

fn reason(text: &str) -> Result<Justification, InvalidJustification> {
    text.to_string().try_into()
}

impl Request {
    /// What the server would refuse, and what no request of this kind could be.
    fn check(&self) -> Result<(), Failure> {
        for (option, given, most) in [
            ("MACHINE", self.machines.len(), MOST_MACHINES),
            ("--port", self.ports.len(), MOST_PARTS),
            ("--from", self.sources.len(), MOST_PARTS),
        ] {
            if given > most {
                return Err(Failure::TooMany { option, given, most });
            }
        }
        let mut earlier = self.machines.iter().enumerate();
        let twice = earlier.find(|(position, machine)| {
            self.machines
                .iter()
                .take(*position)
                .any(|other| other == *machine)
        });
        twice.map_or(Ok(()), |(_, machine)| {
            Err(Failure::NamedTwice(machine.to_string()))
        })
    }

    fn wish(&self, now: Timestamp) -> Result<Wish, Failure> {
        let span = match self.until {
            None => Span::For(self.length),
            Some(until) => {
                let end = until.moment(now).filter(|end| *end > now);
                let passed = || Failure::EndPassed(until.to_string());
                Span::Until(end.ok_or_else(passed)?)
            }
        };
        Ok(Wish {
            ports: self.ports.clone(),
            sources: self.sources.clone(),
            span,
            justification: self.reason.clone(),
        })
    }

    fn patience(&self) -> Patience {
        if self.wait {
            Patience::Endless
        } else {
            let length = if self.no_wait {
                Duration::ZERO
            } else {
                self.timeout
            };
            Patience::Until(Instant::now() + length)
        }
    }
}

pub(crate) async fn request(
    asked: Request,
    connection: &Connection,
    output: &Output,
) -> Result<Exit, Failure> {
    asked.check()?;
    let wish = asked.wish(when::now())?;
    let patience = asked.patience();
    let client = Client::connect(connection).await?;
    let spinner = Spinner::start("asking the server".to_string());
    let wait = match patience {
        Patience::Until(end) => end.saturating_duration_since(Instant::now()).min(FIRST_WAIT),
        Patience::Endless => FIRST_WAIT,
    };
    let mut latest = tokio::select! {
        taken = create(&client, &asked.machines, wish, wait) => taken?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
    };
    spinner.say(&awaited(&latest.outcomes));
    let followed = tokio::select! {
        followed = follow(&client, &mut latest, patience, &spinner) => Some(followed),
        _ = tokio::signal::ctrl_c() => None,
    };
    drop(spinner);
    match followed {
        None => {
            show(latest, output)?;
            return Ok(Exit::Interrupted);
        }
        Some(Err(failure)) => output::report(&failure),
        Some(Ok(())) => {}
    }
    let exit = verdict(&latest.outcomes);
    show(latest, output)?;
    Ok(exit)
}

/// What an answer that nobody could read would have said; `None` if nothing was opened, nor will be.
fn stands(request: &RequestRecord) -> Option<String> {
    let standing = request.outcomes.iter().filter(|outcome| !outcome.state.is_lost());
    let lines: Vec<String> = standing
        .map(|outcome| match (outcome.state, outcome.grant.is_empty()) {
            (OutcomeState::Open, _) => format!(
                "access to {} is open all the same ({})",
                outcome.machine, outcome.grant
            ),
            (_, false) => format!(
                "access to {} opens all the same ({})",
                outcome.machine, outcome.grant
            ),
            (_, true) => format!(
                "access to {} opens when it connects ({})",
                outcome.machine, request.name
            ),
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

/// Asks anew where this host's address has changed between a try whose answer was lost and the next.
async fn create(
    client: &Client,
    machines: &[MachineRef],
    wish: Wish,
    wait: Duration,
) -> Result<RequestRecord, Failure> {
    match client.create_access_request(machines, wish.clone(), wait).await {
        Err(Failure::Refused(refusal)) if refusal.is_from_elsewhere() => {
            let earlier = refusal.earlier_request().unwrap_or("the earlier request");
            output::warn(format!(
                "your address has changed since you asked, so this is asked for anew; what was opened to the \
                 former address stays open until `nightlatch done {earlier}`"
            ));
            client.create_access_request(machines, wish, wait).await
        }
        answered => answered,
    }
}

#[derive(Serialize)]
struct Shown {
    access_request: RequestRecord,
    grants: Vec<BriefGrant>,
    /// The first machine where nothing opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorRecord>,
}

impl Shown {
    fn new(request: RequestRecord, with_error: bool) -> Self {
        let lost = request.outcomes.iter().find(|outcome| outcome.state.is_lost());
        Self {
            grants: request.grants(),
            error: lost.filter(|_| with_error).map(|lost| ErrorRecord {
                code: lost.reason.clone(),
                message: lost_line(lost),
                field: "MACHINE".to_string(),
                machine: lost.machine.clone(),
                hint: String::new(),
            }),
            access_request: request,
        }
    }
}

/// Says what became of a request on each machine.
///
/// # Errors
/// The result can't be written.
fn show(request: RequestRecord, output: &Output) -> Result<(), Failure> {
    for outcome in request.outcomes.iter().filter(|outcome| outcome.state.is_lost()) {
        output::error(lost_line(outcome));
    }
    let told = stands(&request);
    write(request, output, false)
        .map_err(|failure| failure.or_untold(|| Some((told?, SHOWS_GRANTS.to_string()))))
}

/// For those who only look: what was refused is no error of theirs.
///
/// # Errors
/// The result can't be written.
pub(crate) fn show_all(request: RequestRecord, output: &Output) -> Result<(), Failure> {
    write(request, output, true)
}

fn write(request: RequestRecord, output: &Output, with_lost: bool) -> Result<(), Failure> {
    let name = request.name.clone();
    let is_settled = is_settled(&request.outcomes);
    if output.is_json() {
        output.json(&Shown::new(request, !with_lost))?;
    } else {
        write_lines(&request, output, with_lost)?;
    }
    if !is_settled {
        output::hint(format!(
            "the request stands: `nightlatch grant show {name}` shows it, `nightlatch done {name}` ends it"
        ));
    }
    Ok(())
}

fn write_lines(request: &RequestRecord, output: &Output, with_lost: bool) -> Result<(), Failure> {
    let now = when::now();
    for outcome in &request.outcomes {
        if !outcome.state.is_lost() {
            output.line(&state_line(outcome, now))?;
        } else if with_lost {
            output.line(&printable(&lost_line(outcome)))?;
        }
        if outcome.state == OutcomeState::Open {
            let way = Way::to(outcome, &request.sources);
            for line in way.lines(&request.ports) {
                output.line(&printable(&format!("  {line}")))?;
            }
            if let Some(detour) = way.detour() {
                output::hint(detour);
            }
        }
    }
    Ok(())
}

fn lost_line(outcome: &OutcomeRecord) -> String {
    let OutcomeRecord {
        machine,
        state,
        message,
        reason,
        ..
    } = outcome;
    let told = match (message.is_empty(), state) {
        (false, _) => message.clone(),
        (true, OutcomeState::Ended) => "the request has ended, nothing opens any more".to_string(),
        (true, _) => "the host refused the grant".to_string(),
    };
    let reason = if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    };
    format!("{machine}: {told}{reason}")
}

fn state_line(outcome: &OutcomeRecord, now: Timestamp) -> String {
    let OutcomeRecord {
        machine,
        state,
        message,
        end_time,
        offline_since,
        ..
    } = outcome;
    let line = match (state, end_time) {
        (OutcomeState::Open, Some(end)) => {
            format!(
                "{machine}: open until {} ({})",
                when::local(*end),
                when::distance(*end, now)
            )
        }
        (OutcomeState::Open, None) => format!("{machine}: open"),
        _ if !message.is_empty() => format!("{machine}: not open yet: {message}"),
        (OutcomeState::Waiting, _) => {
            let since = offline_since
                .map(|since| format!(" since {}", when::local(since)))
                .unwrap_or_default();
            format!(
                "{machine}: not open yet: approved, and the machine is away{since}; it opens when it connects"
            )
        }
        _ => format!("{machine}: not open yet: approved, and the machine has not confirmed"),
    };
    printable(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Command, CommandLine};
    use clap::Parser as _;

    fn asked(more: &[&str]) -> Request {
        let words = ["nightlatch", "request", "web-1", "--reason", "x"];
        match CommandLine::try_parse_from(words.iter().chain(more))
            .unwrap()
            .command
        {
            Command::Request(asked) => asked,
            other => panic!("{other:?}"),
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_written_is_what_is_asked_for() {
        let words = [
            "--port",
            "22",
            "-p",
            "3389/*,8000-8010/udp",
            "--from",
            "me",
            "--from",
            "192.0.2.7",
            "--for",
            "90m",
        ];
        let wish = asked(&words).wish(at("2026-11-22T12:00:00Z")).unwrap();
        let ports: Vec<String> = wish.ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["22", "3389/*", "8000-8010/udp"]);
        assert_eq!(
            wish.sources,
            [Source::Caller, Source::Prefix("192.0.2.7".parse().unwrap())]
        );
        assert_eq!(wish.span, Span::For(Duration::from_secs(5400)));
        assert_eq!(wish.justification.as_str(), "x");
    }

    #[test]
    fn an_hour_from_where_one_is_unless_said_otherwise() {
        let wish = asked(&["--port", "22"]).wish(at("2026-11-22T12:00:00Z")).unwrap();
        assert_eq!(
            (wish.sources, wish.span),
            (vec![Source::Caller], Span::For(Duration::from_secs(3600)))
        );
    }

    #[test]
    fn an_end_that_has_passed_is_not_sent() {
        let end = at("2026-11-22T12:00:00Z");
        let asked = asked(&["--port", "22", "--until", "2026-11-22T12:00:00Z"]);
        assert!(matches!(asked.wish(end), Err(Failure::EndPassed(_))));
        assert_eq!(
            asked.wish(at("2026-11-22T11:00:00Z")).unwrap().span,
            Span::Until(end)
        );
    }

    #[test]
    fn a_refusal_by_the_host_carries_its_code() {
        let outcome = OutcomeRecord {
            reason: "CEILING_PORT".to_string(),
            ..OutcomeRecord::example("web-1", OutcomeState::Refused)
        };
        assert_eq!(
            lost_line(&outcome),
            "web-1: the host refused the grant (CEILING_PORT)"
        );
    }
}
