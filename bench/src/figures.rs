//! Samples and what is said of them.

/// Samples of one kind, in whatever unit whoever took them chose.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<f64>);

impl Figures {
    pub fn add(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub const fn count(&self) -> usize {
        self.0.len()
    }

    /// The nearest-rank quantile; not a number without samples.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// The median as the nearest rank gives it: of an even number of samples the smaller one in the middle.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

impl FromIterator<f64> for Figures {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

impl Extend<f64> for Figures {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, samples: I) {
        self.0.extend(samples);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_nearest_rank() {
        let figures: Figures = [4.0, 1.0, 3.0, 2.0].into_iter().collect();
        assert_eq!(
            [0.0, 0.5, 0.95, 1.0].map(|share| figures.quantile(share)),
            [1.0, 2.0, 4.0, 4.0]
        );
        assert!(Figures::default().median().is_nan());
    }
}
