//! The story of one access, by the real commands. What is shown is what was typed and what came back.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::plan::LabName;
use nightlatch_tests::scratch::ScratchLab;
use nightlatch_tests::wait::{self, Outcome};

const LENGTH: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(20);

/// Tells it; every claim is checked, and the first that doesn't hold ends it.
pub(crate) fn tell(name: &LabName, binaries: &Path) -> Result<ExitCode> {
    clean_up_when_interrupted(name.clone())?;
    // A demo that was killed may have left its lab.
    Lab::down(name)?;
    let page = Page::new();
    page.title("Nightlatch: the whole path, in a lab of network namespaces");
    let lab = ScratchLab::named(name, 1, Stage::Guarded, binaries)?;
    let story = Story { lab: &lab, page };
    story.tell()?;
    Ok(ExitCode::SUCCESS)
}

struct Story<'l> {
    lab: &'l Lab,
    page: Page,
}

impl Story<'_> {
    fn tell(&self) -> Result<()> {
        self.page
            .chapter("Port 22 of web-1 is guarded, as its policy says. Nobody gets in.");
        self.command("nightlatch policy show web-1", 0)?;
        let refused = self.command("ssh web-1 hostname", 255)?;
        self.page
            .claim(&refused.stderr, "timed out", "the connection was not answered")?;

        self.page
            .chapter("Someone with the right asks for eight seconds, and says why.");
        let request = "nightlatch request web-1 --port 22 --for 8s --reason 'disk full, INC-4711'";
        self.command(request, 0)?;
        let opened = Instant::now();
        self.page
            .tick("exit 0: the host has confirmed that the port is open for this address");

        self.page.chapter("ssh gets in, and stays in.");
        self.page.prompt("ssh web-1");
        let mut session = self.lab.client().session("web-1")?;
        let host = session.type_line("hostname")?;
        self.page.typed("web-1", "hostname", &host);
        self.page.claim(&host, "web-1", "a session is open")?;

        self.page
            .chapter("The grant ends. Nobody has to do anything for that.");
        self.page
            .count_down((opened + LENGTH).saturating_duration_since(Instant::now()));

        self.page.chapter("The session still answers.");
        self.page.typed(
            "web-1",
            "uptime -p; echo still here",
            &session.type_line("uptime -p; echo still here")?,
        );
        session.check_alive()?;
        self.page.tick("open connections live on");

        self.page.chapter("A new connection is refused.");
        let refused = self.command("ssh web-1 hostname", 255)?;
        self.page
            .claim(&refused.stderr, "timed out", "the port is shut again")?;

        self.page.chapter("And all of it is on record.");
        let grants = wait::until("the server has not heard that the host closed", PATIENCE, || {
            let outcome = self.run("nightlatch list grants")?;
            Ok(outcome.stdout.contains("ended").then_some(outcome))
        })?;
        self.page.shown("nightlatch list grants", &grants);
        let line = "nightlatch events --machine web-1";
        let events = wait::until("the events lack the opening or the end", PATIENCE, || {
            let outcome = self.run(line)?;
            let told = ["grant.issued", "grant.opened", "grant.closed"];
            let is_whole = told.iter().all(|kind| outcome.stdout.contains(kind));
            Ok(is_whole.then_some(outcome))
        })?;
        self.page.shown(line, &events);
        self.page
            .tick("every open port leads back to a signed grant and a person");
        Ok(())
    }

    /// Types a command at the client, shows it with what came back, and checks its exit code.
    fn command(&self, line: &str, code: i32) -> Result<Outcome> {
        let outcome = self.run(line)?;
        self.page.shown(line, &outcome);
        ensure!(
            outcome.code == Some(code),
            "`{line}` should have ended with exit code {code}: {outcome}"
        );
        Ok(outcome)
    }

    fn run(&self, line: &str) -> Result<Outcome> {
        wait::run(self.lab.client().desk().args(["sh", "-c", line]), PATIENCE)
    }
}

/// What the reader sees.
struct Page {
    colour: bool,
}

impl Page {
    fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour }
    }

    fn title(&self, text: &str) {
        println!("{}", self.paint("1", text));
    }

    fn chapter(&self, text: &str) {
        println!("\n{}", self.paint("1;36", text));
    }

    fn prompt(&self, line: &str) {
        println!("  {}", self.paint("1", &format!("$ {line}")));
    }

    fn shown(&self, line: &str, outcome: &Outcome) {
        self.prompt(line);
        for text in [&outcome.stdout, &outcome.stderr] {
            text.lines().for_each(|line| println!("  {line}"));
        }
    }

    fn typed(&self, host: &str, line: &str, answer: &str) {
        println!("  {}", self.paint("1", &format!("{host}# {line}")));
        answer.lines().for_each(|line| println!("  {line}"));
    }

    fn tick(&self, claim: &str) {
        println!("  {} {claim}", self.paint("1;32", "✓"));
    }

    fn claim(&self, text: &str, holds: &str, claim: &str) -> Result<()> {
        ensure!(text.contains(holds), "{claim}: expected `{holds}` in `{text}`");
        self.tick(claim);
        Ok(())
    }

    /// Waits; on a terminal the seconds are seen to go.
    fn count_down(&self, length: Duration) {
        let end = Instant::now() + length;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if self.colour {
                print!("\r  {:2} s ", left.as_secs_f32().ceil());
                // A terminal that has gone away needs no count-down.
                std::io::stdout().flush().ok();
            }
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(Duration::from_secs(1)));
        }
        if self.colour {
            print!("\r");
        }
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn clean_up_when_interrupted(name: LabName) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            // The process ends either way.
            Lab::down(&name).ok();
            std::process::exit(130);
        }
    });
    Ok(())
}
