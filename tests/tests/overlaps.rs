//! Overlapping grants never cut each other short: the later end holds for each address.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_tests::echo::Echo;
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::machine::Machine;
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;

const RULES: [&str; 2] = ["22/tcp,max=PT3H", "9000-9010/udp"];
const SHORT: &str = "4s";
const LONG: &str = "10s";
/// Between the short end and the long one.
const BETWEEN: Duration = Duration::from_secs(6);
/// After both, and after the two seconds that a UDP flow may go on in the lab.
const AFTER: Duration = Duration::from_millis(12_800);

const NEAR: &str = "198.51.100.7";
const FAR: &str = "198.51.100.8";
const NEAR_IPV6: &str = "2001:db8:1::7";
const FAR_IPV6: &str = "2001:db8:1::8";

/// Grants on one machine, each with its sources and length, and who gets in between the two ends.
struct Case {
    name: &'static str,
    port: &'static str,
    grants: &'static [(&'static [&'static str], &'static str)],
    revoked: &'static [usize],
    let_in: &'static [&'static str],
    shut_out: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "the same source twice, the longer one last",
        port: "22",
        grants: &[(&[NEAR], SHORT), (&[NEAR], LONG)],
        revoked: &[],
        let_in: &[NEAR],
        shut_out: &[FAR, NEAR_IPV6],
    },
    Case {
        name: "the same source twice, the longer one first",
        port: "22",
        grants: &[(&[NEAR], LONG), (&[NEAR], SHORT)],
        revoked: &[],
        let_in: &[NEAR],
        shut_out: &[FAR],
    },
    Case {
        name: "a short prefix around an address that has longer",
        port: "22",
        grants: &[(&["198.51.100.0/24"], SHORT), (&[NEAR], LONG)],
        revoked: &[],
        let_in: &[NEAR],
        shut_out: &[FAR],
    },
    Case {
        name: "a long prefix around an address that has shorter",
        port: "22",
        grants: &[(&["198.51.100.0/24"], LONG), (&[NEAR], SHORT)],
        revoked: &[],
        let_in: &[NEAR, FAR],
        shut_out: &[NEAR_IPV6],
    },
    Case {
        name: "one of two equal ones is revoked",
        port: "22",
        grants: &[(&[NEAR], LONG), (&[NEAR], LONG), (&[FAR], LONG)],
        revoked: &[0, 2],
        let_in: &[NEAR],
        shut_out: &[FAR],
    },
    Case {
        name: "the prefix is revoked, the address in it stays",
        port: "22",
        grants: &[(&["198.51.100.0/24"], LONG), (&[NEAR], LONG)],
        revoked: &[0],
        let_in: &[NEAR],
        shut_out: &[FAR],
    },
    Case {
        name: "IPv4 and IPv6 in one request, and a prefix of each",
        port: "22",
        grants: &[
            (&[NEAR, NEAR_IPV6], LONG),
            (&["198.51.100.0/24", "2001:db8:1::/64"], SHORT),
        ],
        revoked: &[],
        let_in: &[NEAR, NEAR_IPV6],
        shut_out: &[FAR, FAR_IPV6],
    },
    Case {
        name: "every address there is, for a short while",
        port: "22",
        grants: &[(&["0.0.0.0/0", "::/0"], SHORT), (&["2001:db8:1::/64"], LONG)],
        revoked: &[],
        let_in: &[NEAR_IPV6, FAR_IPV6],
        shut_out: &[NEAR, FAR],
    },
    Case {
        name: "UDP over both families",
        port: "9000-9010/udp",
        grants: &[
            (&[NEAR, NEAR_IPV6], SHORT),
            (&[NEAR, NEAR_IPV6], LONG),
            (&[FAR], SHORT),
        ],
        revoked: &[],
        let_in: &[NEAR, NEAR_IPV6],
        shut_out: &[FAR, FAR_IPV6],
    },
];

#[test]
fn the_later_end_holds_for_each_address() -> Result<()> {
    let machines = u16::try_from(CASES.len())?;
    in_a_lab(machines, Stage::Enrolled, |lab| {
        for (address, length) in [(NEAR, 24), (FAR, 24), (NEAR_IPV6, 64), (FAR_IPV6, 64)] {
            lab.client().add_address(&format!("{address}/{length}"))?;
        }
        for machine in lab.machines() {
            lab.guard(machine, &RULES)?;
        }
        thread::scope(|scope| {
            let checks: Vec<_> = lab
                .machines()
                .zip(CASES)
                .map(|(machine, case)| scope.spawn(move || check(lab, machine, case).context(case.name)))
                .collect();
            checks
                .into_iter()
                .try_for_each(|check| check.join().ok().context("a case fell over")?)
        })
    })
}

fn check(lab: &Lab, machine: Machine<'_>, case: &Case) -> Result<()> {
    let _echoes = echoes(machine)?;
    let mut grants = Vec::new();
    let mut opened = Instant::now();
    for (sources, length) in case.grants {
        let mut asked = vec!["--port", case.port, "--for", *length];
        asked.extend(sources.iter().flat_map(|source| ["--from", *source]));
        grants.push(lab.client().open(&machine.name(), &asked)?);
        opened = Instant::now();
    }
    for source in case.let_in {
        ensure!(
            gets_in(lab, machine, case, source)?,
            "{source} is shut out at once"
        );
    }
    for position in case.revoked {
        let grant = grants.get(*position).context("a case revokes what it has not")?;
        lab.client()
            .run(&["revoke", grant])?
            .expect_success("nightlatch revoke")?;
    }
    wait::let_pass_until(opened + BETWEEN);
    for source in case.let_in {
        ensure!(
            gets_in(lab, machine, case, source)?,
            "{source} is shut out between the ends"
        );
    }
    for source in case.shut_out {
        ensure!(
            !gets_in(lab, machine, case, source)?,
            "{source} gets in between the ends"
        );
    }
    wait::let_pass_until(opened + AFTER);
    for source in case.let_in.iter().chain(case.shut_out) {
        ensure!(
            !gets_in(lab, machine, case, source)?,
            "{source} gets in after both ends"
        );
    }
    Ok(())
}

fn gets_in(lab: &Lab, machine: Machine<'_>, case: &Case, source: &str) -> Result<bool> {
    let source: IpAddr = source.parse()?;
    let addresses = machine.addresses();
    let host = if source.is_ipv4() {
        IpAddr::from(addresses.ipv4)
    } else {
        IpAddr::from(addresses.ipv6)
    };
    if case.port == "22" {
        return lab
            .client()
            .reaches_from(Some(source), SocketAddr::from((host, 22)));
    }
    let socket = lab
        .client()
        .netns()
        .inside(|| Ok(UdpSocket::bind((source, 0))?))?;
    lab.client().echoes(&socket, SocketAddr::from((host, 9005)))
}

fn echoes(machine: Machine<'_>) -> Result<[Echo; 2]> {
    let addresses = machine.addresses();
    let serve = |host: IpAddr| Echo::serve(&machine.netns(), SocketAddr::from((host, 9005)));
    Ok([serve(addresses.ipv4.into())?, serve(addresses.ipv6.into())?])
}
