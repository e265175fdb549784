//! The order in which everything is measured.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use nightlatch_bench::figures::Figures;
use nightlatch_bench::footprint;
use nightlatch_tests::lab::{Lab, Stage, Wish as LabWish};
use nightlatch_tests::plan::LabName;

use crate::PATIENCE;
use crate::asks::{self, Asks};
use crate::caller::Wish;
use crate::doors::{self, Doors};
use crate::ends;
use crate::published::{self, Published};
use crate::sizes::Sizes;
use crate::world::World;

/// What a run found.
pub(crate) struct Survey {
    pub(crate) asks: Asks,
    pub(crate) ends_agent_alive: Figures,
    pub(crate) ends_agent_dead: Figures,
    pub(crate) published: Vec<Burst>,
    /// Milliseconds until 1,000 callers, 64 at a time, all had their answers.
    pub(crate) thousand_callers: Figures,
    /// Under so many openings; `None` before there was a policy.
    pub(crate) doors: Vec<(Option<usize>, Doors)>,
    pub(crate) idle: Footprints,
    pub(crate) most: AtMost,
}

/// With the most grants open that there were.
pub(crate) struct AtMost {
    pub(crate) grants: usize,
    /// Milliseconds of one more, by the warm client.
    pub(crate) asks: Figures,
    pub(crate) idle: Footprints,
}

/// Grants published at once.
pub(crate) struct Burst {
    pub(crate) grants: usize,
    pub(crate) signing: Figures,
    pub(crate) passed: Figures,
    pub(crate) agent_busy: Figures,
    pub(crate) server_busy: Figures,
}

/// Resident MiB and percent of a processor.
#[derive(Clone, Copy)]
pub(crate) struct Footprints {
    pub(crate) agent: (f64, f64),
    pub(crate) server: (f64, f64),
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
    let doors = vec![(None, doors_now(&world, regular, sizes)?)];
    world.guard()?;
    world.settle()?;
    progress("idle");
    let idle = footprints(&world, sizes.idle)?;
    progress(&format!("request → first connect, {} times each way", sizes.asks));
    let asks = asks::all_kinds(&mut world, sizes.asks)?;
    progress(&format!("{} ends, agent alive", sizes.ends));
    let ends_agent_alive = ends::errors(&mut world, sizes.ends, false)?;
    progress(&format!("{} ends, agent killed before", sizes.ends_agent_dead));
    let ends_agent_dead = ends::errors(&mut world, sizes.ends_agent_dead, true)?;
    world.clear()?;
    let mut survey = Survey {
        asks,
        ends_agent_alive,
        ends_agent_dead,
        published: Vec::new(),
        thousand_callers: Figures::default(),
        doors,
        idle,
        most: AtMost {
            grants: 0,
            asks: Figures::default(),
            idle,
        },
    };
    survey.under(&mut world, 0, regular, sizes, &mut progress)?;
    for time in 1..=sizes.callers {
        progress(&format!("1,000 callers, {time} of {}", sizes.callers));
        let passed = published::asked_for_at_once(&mut world, 1_000)?;
        survey.thousand_callers.add(passed);
        world.clear()?;
    }
    for (grants, times) in sizes.published.iter().copied() {
        let burst = survey.burst(&mut world, (grants, times), regular, sizes, &mut progress)?;
        survey.published.push(burst);
    }
    Ok(survey)
}

/// From here on the number of openings is worth a look at everything else.
const MANY: usize = 1_000;

impl Survey {
    fn burst(
        &mut self,
        world: &mut World<'_>,
        (grants, times): (usize, usize),
        regular: Ipv4Addr,
        sizes: &Sizes,
        progress: &mut impl FnMut(&str),
    ) -> Result<Burst> {
        let mut burst = Burst {
            grants,
            signing: Figures::default(),
            passed: Figures::default(),
            agent_busy: Figures::default(),
            server_busy: Figures::default(),
        };
        for time in 1..=times {
            progress(&format!("{grants} grants at once, {time} of {times}"));
            let Published {
                signing,
                passed,
                agent_busy,
                server_busy,
            } = published::publish(world, grants)?;
            burst.signing.add(signing);
            burst.passed.add(passed);
            burst.agent_busy.add(agent_busy);
            burst.server_busy.add(server_busy);
            if time == 1 && grants >= MANY {
                self.under(world, grants, regular, sizes, progress)?;
            }
            if grants > 1 || time == times {
                world.clear()?;
            }
        }
        Ok(burst)
    }

    /// What is measured while that many openings are there.
    fn under(
        &mut self,
        world: &mut World<'_>,
        grants: usize,
        regular: Ipv4Addr,
        sizes: &Sizes,
        progress: &mut impl FnMut(&str),
    ) -> Result<()> {
        world.settle()?;
        if grants > 0 {
            progress(&format!("idle with {grants} open"));
            let idle = footprints(world, sizes.idle)?;
            progress(&format!("one more with {grants} open, {} times", sizes.asks));
            let asks = asks::many_warm(world, sizes.asks)?;
            self.most = AtMost { grants, asks, idle };
        }
        progress(&format!("connects with {grants} open"));
        open_for_long(world, regular)?;
        self.doors.push((Some(grants), doors_now(world, regular, sizes)?));
        Ok(())
    }
}

fn doors_now(world: &World<'_>, source: Ipv4Addr, sizes: &Sizes) -> Result<Doors> {
    doors::connects(world, source, sizes.rounds, sizes.connects)
}

/// The one who knocks at the guarded door while it is measured.
fn open_for_long(world: &mut World<'_>, source: Ipv4Addr) -> Result<()> {
    let wish = Wish {
        machine: world.guarded_machine().name(),
        port: world.porches().guarded.at.port(),
        source,
        length: Duration::from_secs(3600),
        wait: PATIENCE,
    };
    world.caller.open(&wish).map(drop)
}

fn footprints(world: &World<'_>, window: Duration) -> Result<Footprints> {
    let [agent, server] = footprint::idle([world.agent()?, world.server()?], window)?;
    Ok(Footprints { agent, server })
}
