//! The order in which everything is measured.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;
use nightlatch_bench::doors::{self, Passage};
use nightlatch_bench::figures::Figures;
use nightlatch_bench::footprint::{self, Footprint};
use nightlatch_tests::lab::{Lab, Stage, Wish as LabWish};
use nightlatch_tests::plan::LabName;

use crate::asks::{self, Asks};
use crate::ends;
use crate::published::{self, Published};
use crate::sizes::Sizes;
use crate::world::World;

/// What a run found.
pub(crate) struct Survey {
    /// Before there was a policy.
    pub(crate) doors_before: [Passage; 4],
    /// With nothing open, then with many.
    pub(crate) under: Vec<Under>,
    pub(crate) asks: Asks,
    pub(crate) ends_agent_alive: Figures,
    pub(crate) ends_agent_dead: Figures,
    pub(crate) published: Vec<Burst>,
    /// Milliseconds until 1,000 calls, 64 at a time, all had their answers.
    pub(crate) thousand_calls: Figures,
}

/// What was measured while so many grants were open.
pub(crate) struct Under {
    pub(crate) grants: usize,
    pub(crate) idle: Footprints,
    /// What was open then, whoever knocks included.
    pub(crate) openings: usize,
    pub(crate) doors: [Passage; 4],
    /// Milliseconds of one more, by the warm client alone.
    pub(crate) asks: Figures,
}

/// Grants published at once.
#[derive(Default)]
pub(crate) struct Burst {
    pub(crate) grants: usize,
    pub(crate) signing: Figures,
    pub(crate) passed: Figures,
    pub(crate) agent_busy: Figures,
    pub(crate) server_busy: Figures,
}

#[derive(Clone, Copy)]
pub(crate) struct Footprints {
    pub(crate) agent: Footprint,
    pub(crate) server: Footprint,
}

/// Brings the lab up and measures; leaves it standing.
pub(crate) fn survey(
    name: &LabName,
    binaries: PathBuf,
    sizes: &Sizes,
    mut progress: impl FnMut(&str) + Send,
) -> Result<Survey> {
    let wish = LabWish {
        name: name.clone(),
        machines: 2,
        binaries,
        stage: Stage::Enrolled,
    };
    let lab = Lab::up(wish, &mut progress)?;
    lab.client().netns().inside(|| measure(&lab, sizes, progress))
}

fn measure(lab: &Lab, sizes: &Sizes, mut progress: impl FnMut(&str)) -> Result<Survey> {
    let mut world = World::make(lab)?;
    let regular = world.fresh_source();
    progress("connects before there is a policy");
    let doors_before = passages(&world, regular, sizes)?;
    world.guard()?;
    let mut under = vec![measure_under(&mut world, 0, regular, sizes, &mut progress)?];
    world.clear()?;
    progress(&format!("request → first connect, {} times each way", sizes.asks));
    let asks = asks::all_kinds(&mut world, sizes.asks)?;
    progress(&format!("{} ends, agent alive", sizes.ends));
    let ends_agent_alive = ends::errors(&mut world, sizes.ends, false)?;
    progress(&format!("{} ends, agent killed before", sizes.ends_agent_dead));
    let ends_agent_dead = ends::errors(&mut world, sizes.ends_agent_dead, true)?;
    world.clear()?;
    let mut thousand_calls = Figures::default();
    for time in 1..=sizes.calls {
        progress(&format!("1,000 calls, {time} of {}", sizes.calls));
        thousand_calls.add(published::asked_for_at_once(&mut world, 1_000)?);
        world.clear()?;
    }
    let mut published = Vec::new();
    for (grants, times) in sizes.published.iter().copied() {
        let mut burst = Burst {
            grants,
            ..Burst::default()
        };
        for time in 1..=times {
            progress(&format!("{grants} grants at once, {time} of {times}"));
            burst.add(&published::publish(&mut world, grants)?);
            if time == 1 && grants >= MANY {
                under.push(measure_under(&mut world, grants, regular, sizes, &mut progress)?);
            }
            // Single ones are few even together, and each has an address of its own.
            if grants > 1 || time == times {
                world.clear()?;
            }
        }
        published.push(burst);
    }
    Ok(Survey {
        doors_before,
        under,
        asks,
        ends_agent_alive,
        ends_agent_dead,
        published,
        thousand_calls,
    })
}

/// From here on the number of openings is worth a look at everything else.
const MANY: usize = 1_000;

impl Burst {
    fn add(&mut self, published: &Published) {
        let Published {
            signing,
            passed,
            agent_busy,
            server_busy,
        } = published;
        self.signing.add(*signing);
        self.passed.add(*passed);
        self.agent_busy.add(*agent_busy);
        self.server_busy.add(*server_busy);
    }
}

/// What is measured while that many grants are there.
fn measure_under(
    world: &mut World<'_>,
    grants: usize,
    regular: Ipv4Addr,
    sizes: &Sizes,
    progress: &mut impl FnMut(&str),
) -> Result<Under> {
    world.settle()?;
    progress(&format!("idle with {grants} open"));
    let [agent, server] = footprint::idle([world.agent()?, world.server()?], sizes.idle)?;
    progress(&format!("connects with {grants} open"));
    world.open_for_long(regular)?;
    let openings = world.open_grants()?;
    let doors = passages(world, regular, sizes)?;
    progress(&format!("one more with {grants} open, {} times", sizes.asks));
    Ok(Under {
        grants,
        idle: Footprints { agent, server },
        openings,
        doors,
        asks: asks::many_warm(world, sizes.asks)?,
    })
}

fn passages(world: &World<'_>, source: Ipv4Addr, sizes: &Sizes) -> Result<[Passage; 4]> {
    doors::compare(world.doors(), source, sizes.rounds, sizes.connects)
}
