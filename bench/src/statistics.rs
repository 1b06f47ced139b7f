//! Medians with confidence intervals. Pure.

use serde::Serialize;

/// Median of some samples with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
    pub samples: usize,
}

/// Resamples for one interval.
const RESAMPLES: usize = 2000;

/// The interval is the percentile bootstrap of the median (Efron 1979), with a fixed seed: the same samples give the
/// same interval. `None`: no samples.
pub fn estimate(samples: &[f64]) -> Option<Estimate> {
    let median = quantile(samples, 0.5)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut medians = Vec::with_capacity(RESAMPLES);
    let mut drawn = Vec::with_capacity(samples.len());
    for _ in 0..RESAMPLES {
        drawn.clear();
        for _ in samples {
            let index = usize::try_from(next(&mut state) % samples.len() as u64).ok()?;
            drawn.push(*samples.get(index)?);
        }
        medians.push(quantile(&drawn, 0.5)?);
    }
    let (low, high) = (quantile(&medians, 0.025)?, quantile(&medians, 0.975)?);
    Some(Estimate { median, low, high, samples: samples.len() })
}

/// `q` between 0 and 1, linear between neighbours. `None`: no samples.
pub fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = q.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)? as f64);
    let below = place.floor();
    let (low, high) = (sorted.get(below as usize)?, sorted.get(place.ceil() as usize)?);
    Some(low + (high - low) * (place - below))
}

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_of_few_samples_lie_between_them() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&samples, 0.5), Some(2.5));
        assert_eq!(quantile(&samples, 0.0), Some(1.0));
        assert_eq!(quantile(&samples, 1.0), Some(4.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_median_and_lies_among_the_samples(
            samples in prop::collection::vec(-1e6..1e6_f64, 1..12)
        ) {
            let estimate = estimate(&samples).unwrap();
            let least = quantile(&samples, 0.0).unwrap();
            let most = quantile(&samples, 1.0).unwrap();
            prop_assert!(least <= estimate.low && estimate.low <= estimate.median);
            prop_assert!(estimate.median <= estimate.high && estimate.high <= most);
        }
    }
}
