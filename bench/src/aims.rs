//! What the figures are aimed at, and whether they get there.

use nightlatch_bench::document::{Table, short};
use nightlatch_bench::doors::Passage;
use nightlatch_bench::figures::Figures;

use crate::survey::Survey;

/// One aim, as a figure of the survey and what it may be.
struct Aim {
    what: &'static str,
    unit: &'static str,
    limit: Limit,
    figure: fn(&Survey) -> f64,
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    /// What could not be measured is not met.
    fn is_met_by(self, figure: f64) -> bool {
        match self {
            Self::AtMost(most) => figure <= most,
            Self::AtLeast(least) => figure >= least,
        }
    }
}

/// The largest number of openings that is aimed at.
const MOST: usize = 10_000;

const AIMS: [Aim; 11] = [
    Aim {
        what: "request → first connect, warm client, with the durable record, p50",
        unit: "ms",
        limit: Limit::AtMost(2.0),
        figure: |survey| survey.asks.warm.median(),
    },
    Aim {
        what: "request → first connect, whole command, p50",
        unit: "ms",
        limit: Limit::AtMost(8.0),
        figure: |survey| survey.asks.command.median(),
    },
    Aim {
        what: "end, agent alive: the largest error either way",
        unit: "ms",
        limit: Limit::AtMost(10.0),
        figure: |survey| largest(&survey.ends_agent_alive),
    },
    Aim {
        what: "end, agent killed: the largest error either way",
        unit: "ms",
        limit: Limit::AtMost(10.0),
        figure: |survey| largest(&survey.ends_agent_dead),
    },
    Aim {
        what: "1,000 grants, publishing → last receipt, p50",
        unit: "ms",
        limit: Limit::AtMost(100.0),
        figure: |survey| at_once(survey, 1_000),
    },
    Aim {
        what: "10,000 grants, publishing → last receipt, p50",
        unit: "ms",
        limit: Limit::AtMost(1_000.0),
        figure: |survey| at_once(survey, MOST),
    },
    Aim {
        what: "one more with 10,000 open as fast as with none, to a tenth: warm client alone, p50 ÷ p50",
        unit: "",
        limit: Limit::AtMost(1.1),
        figure: |survey| one_more(survey, MOST) / one_more(survey, 0),
    },
    Aim {
        what: "connects to an unguarded port, of no rules, the least under any number of openings",
        unit: "",
        limit: Limit::AtLeast(0.97),
        figure: least_unguarded,
    },
    Aim {
        what: "connects a second to an unguarded port, of no rules, the least likewise",
        unit: "",
        limit: Limit::AtLeast(0.97),
        figure: least_rate_unguarded,
    },
    Aim {
        what: "agent, idle, nothing open",
        unit: "MiB",
        limit: Limit::AtMost(10.0),
        figure: |survey| agent_mib(survey, 0),
    },
    Aim {
        what: "agent, 10,000 open",
        unit: "MiB",
        limit: Limit::AtMost(24.0),
        figure: |survey| agent_mib(survey, MOST),
    },
];

/// A table of all aims.
pub(crate) fn table(survey: &Survey) -> String {
    let mut table = Table::headed(&["aim", "at", "measured", "met"]);
    for Aim {
        what,
        unit,
        limit,
        figure,
    } in AIMS
    {
        let figure = figure(survey);
        let (sign, bound) = match limit {
            Limit::AtMost(bound) => ('≤', bound),
            Limit::AtLeast(bound) => ('≥', bound),
        };
        let digits = |value: f64| {
            // Of shares the third digit after the point decides.
            if unit.is_empty() && !value.is_nan() {
                format!("{value:.3}")
            } else {
                short(value)
            }
        };
        let measured = format!("{} {unit}", digits(figure));
        table.row(&[
            what,
            format!("{sign} {bound} {unit}").trim_end(),
            measured.trim_end(),
            if limit.is_met_by(figure) { "yes" } else { "**no**" },
        ]);
    }
    format!("### Aims\n{}", table.into_text())
}

fn largest(errors: &Figures) -> f64 {
    errors.quantile(0.0).abs().max(errors.quantile(1.0).abs())
}

fn at_once(survey: &Survey, grants: usize) -> f64 {
    let burst = survey.published.iter().find(|burst| burst.grants == grants);
    burst.map_or(f64::NAN, |burst| burst.passed.median())
}

fn one_more(survey: &Survey, grants: usize) -> f64 {
    let under = survey.under.iter().find(|under| under.grants == grants);
    under.map_or(f64::NAN, |under| under.asks.median())
}

fn agent_mib(survey: &Survey, grants: usize) -> f64 {
    let under = survey.under.iter().find(|under| under.grants == grants);
    under.map_or(f64::NAN, |under| under.idle.agent.mib)
}

fn least_unguarded(survey: &Survey) -> f64 {
    least(survey, |[_, _, unguarded, _]| unguarded.of_first.median())
}

fn least_rate_unguarded(survey: &Survey) -> f64 {
    least(survey, |[without_rules, _, unguarded, _]| {
        unguarded.rate.median() / without_rules.rate.median()
    })
}

fn least(survey: &Survey, figure: fn(&[Passage; 4]) -> f64) -> f64 {
    let figures = survey.under.iter().map(|under| figure(&under.doors));
    figures.reduce(f64::min).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_is_met_at_its_limit_and_not_beyond_it_nor_without_a_figure() {
        let (most, least) = (Limit::AtMost(2.0), Limit::AtLeast(0.97));
        assert_eq!(
            [1.9, 2.0, 2.1, f64::NAN].map(|figure| most.is_met_by(figure)),
            [true, true, false, false]
        );
        assert_eq!(
            [0.96, 0.97, 1.0, f64::NAN].map(|figure| least.is_met_by(figure)),
            [false, true, true, false]
        );
    }

    #[test]
    fn an_end_too_early_is_an_error_like_one_too_late() {
        let errors: Figures = [-12.0, 3.0, 5.0].into_iter().collect();
        assert_eq!(largest(&errors), 12.0);
        assert!(largest(&Figures::default()).is_nan());
    }
}
