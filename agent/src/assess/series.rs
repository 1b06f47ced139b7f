//! What rounds have carried, one after the other, and what a line must carry for them. Pure.
//!
//! Memory is bounded: beyond [`MOST_SPANS`] rounds, neighbours become one span. Then percentiles are of spans that
//! long, and [`Series::span_seconds`] says so.

/// 3 days of rounds of one second: 4 MiB.
const MOST_SPANS: usize = 1 << 18;
/// Halving steps of [`Series::rate_for`]: more than a double has digits.
const STEPS: usize = 60;

/// A round, or several in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Span {
    pub seconds: f64,
    pub bytes: u64,
}

impl Span {
    fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 / self.seconds } else { 0.0 }
    }

    fn add(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.bytes += other.bytes;
    }
}

#[derive(Debug, Clone)]
pub struct Series {
    spans: Vec<Span>,
    most: usize,
    /// Rounds that one span holds.
    rounds: u64,
    /// The last span, while it is not full, and the rounds in it.
    open: (Span, u64),
}

impl Default for Series {
    fn default() -> Self {
        Self::bounded(MOST_SPANS)
    }
}

impl Series {
    /// At most so many spans, two or more.
    pub fn bounded(most: usize) -> Self {
        Self { spans: Vec::new(), most: most.max(2), rounds: 1, open: (Span::default(), 0) }
    }

    pub fn push(&mut self, round: Span) {
        self.open.0.add(round);
        self.open.1 += 1;
        if self.open.1 < self.rounds {
            return;
        }
        self.spans.push(self.open.0);
        self.open = (Span::default(), 0);
        if self.spans.len() >= self.most {
            let odd = if self.spans.len() % 2 == 1 { self.spans.pop() } else { None };
            self.spans = self
                .spans
                .chunks(2)
                .map(|pair| {
                    pair.iter().fold(Span::default(), |mut sum, span| {
                        sum.add(*span);
                        sum
                    })
                })
                .collect();
            if let Some(odd) = odd {
                self.open = (odd, self.rounds);
            }
            self.rounds *= 2;
        }
    }

    fn all(&self) -> impl Iterator<Item = Span> + Clone + '_ {
        let open = (self.open.1 > 0).then_some(self.open.0);
        self.spans.iter().copied().chain(open)
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty() && self.open.1 == 0
    }

    pub fn total(&self) -> Span {
        self.all().fold(Span::default(), |mut sum, span| {
            sum.add(span);
            sum
        })
    }

    /// Bytes a second over all.
    pub fn average(&self) -> f64 {
        self.total().rate()
    }

    /// Mean length of a span.
    pub fn span_seconds(&self) -> f64 {
        match self.all().count() {
            0 => 0.0,
            spans => self.total().seconds / spans as f64,
        }
    }

    /// Bytes a second that this share of the spans (0 to 1) does not exceed; nearest rank.
    pub fn percentiles<const N: usize>(&self, shares: [f64; N]) -> [f64; N] {
        let mut rates: Vec<f64> = self.all().map(|span| span.rate()).collect();
        rates.sort_by(f64::total_cmp);
        shares.map(|share| {
            let rank = (share * rates.len() as f64).ceil() as usize;
            rates.get(rank.clamp(1, rates.len().max(1)) - 1).copied().unwrap_or(0.0)
        })
    }

    /// The most bytes in any stretch of whole spans that is at least this long and would not be without its first.
    /// `None` when less than that was measured.
    pub fn worst(&self, seconds: f64) -> Option<u64> {
        if self.total().seconds < seconds {
            return None;
        }
        let mut tail = self.all();
        let mut sum = Span::default();
        let mut worst = 0;
        for span in self.all() {
            sum.add(span);
            // The oldest span goes once the rest is long enough without it.
            let mut rest = tail.clone();
            while let Some(oldest) = rest.next().filter(|oldest| sum.seconds - oldest.seconds >= seconds) {
                sum.seconds -= oldest.seconds;
                sum.bytes -= oldest.bytes;
                tail = rest.clone();
            }
            worst = worst.max(sum.bytes);
        }
        Some(worst)
    }

    /// The lowest rate of a line at which the vault never falls further behind than `goal` seconds, each byte weighing
    /// `ratio`; `None` when no line can do that, since a span alone lasts as long.
    ///
    /// A span's bytes are there at its end, go one after the other, and until the last one has arrived the newest
    /// point is the end of the span before.
    pub fn rate_for(&self, goal: f64, ratio: f64) -> Option<f64> {
        if self.all().any(|span| span.seconds >= goal) {
            return None;
        }
        let total = self.total().bytes as f64 * ratio;
        if total <= 0.0 {
            return Some(0.0);
        }
        // Enough for the largest span within what is left after the longest one.
        let left = self.all().map(|span| goal - span.seconds).fold(f64::INFINITY, f64::min);
        let (mut low, mut high) = (0.0, total / left);
        for _ in 0..STEPS {
            let middle = f64::midpoint(low, high);
            if self.keeps(goal, ratio, middle) { high = middle } else { low = middle }
        }
        Some(high)
    }

    /// Whether a line of this rate keeps the vault within `goal` seconds.
    fn keeps(&self, goal: f64, ratio: f64, rate: f64) -> bool {
        let (mut now, mut sent) = (0.0_f64, 0.0_f64);
        self.all().all(|span| {
            let before = now;
            now += span.seconds;
            sent = sent.max(now) + span.bytes as f64 * ratio / rate;
            // A millionth for the sums of doubles.
            sent - before <= goal * (1.0 + 1e-6)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn series(rounds: &[(f64, u64)]) -> Series {
        let mut series = Series::default();
        for (seconds, bytes) in rounds {
            series.push(Span { seconds: *seconds, bytes: *bytes });
        }
        series
    }

    #[test]
    fn percentiles_are_rates_of_rounds_and_the_average_is_of_the_time() {
        let rounds: Vec<_> = (1..=100).map(|number| (2.0, number * 20)).collect();
        let series = series(&rounds);
        assert_eq!(series.percentiles([0.5, 0.95, 0.99, 1.0]), [500.0, 950.0, 990.0, 1000.0]);
        assert_eq!(series.average(), 505.0);
        assert_eq!(Series::default().percentiles([0.5]), [0.0]);
    }

    #[test]
    fn the_worst_stretch_is_found_wherever_it_is() {
        let series = series(&[(1.0, 1), (1.0, 50), (1.0, 60), (1.0, 1), (1.0, 100)]);
        assert_eq!(series.worst(1.0), Some(100));
        assert_eq!(series.worst(2.0), Some(110));
        assert_eq!(series.worst(3.0), Some(161));
        assert_eq!(series.worst(5.0), Some(212));
        assert_eq!(series.worst(6.0), None, "only five seconds were measured");
    }

    #[test]
    fn a_burst_may_be_sent_within_the_goal() {
        // 100 bytes at the end of the first second; ten seconds allowed, one of them gone.
        let series = series(&[(1.0, 100), (1.0, 0), (1.0, 0), (1.0, 0)]);
        let rate = series.rate_for(10.0, 1.0).unwrap();
        assert!((rate - 100.0 / 9.0).abs() < 0.01, "{rate}");
        let half = series.rate_for(10.0, 0.5).unwrap();
        assert!((half - 50.0 / 9.0).abs() < 0.01, "compressed to half: {half}");
        assert_eq!(series.rate_for(1.0, 1.0), None, "the round alone takes that long");
    }

    /// The same by the definition: every busy stretch of rounds has to be sent within what the goal leaves.
    fn by_definition(rounds: &[(f64, u64)], goal: f64) -> f64 {
        let ends: Vec<f64> = rounds
            .iter()
            .scan(0.0, |end, (seconds, _)| {
                *end += seconds;
                Some(*end)
            })
            .collect();
        let mut worst = 0.0_f64;
        for first in 0..rounds.len() {
            let mut bytes = 0;
            for last in first..rounds.len() {
                bytes += rounds[last].1;
                worst = worst.max(bytes as f64 / (ends[last] - ends[first] + goal - rounds[last].0));
            }
        }
        worst
    }

    fn rounds() -> impl Strategy<Value = Vec<(f64, u64)>> {
        prop::collection::vec((1_u32..5, prop_oneof![Just(0_u64), 0..1000_u64, 0..1_000_000_u64]), 1..40)
            .prop_map(|all| all.into_iter().map(|(seconds, bytes)| (f64::from(seconds), bytes)).collect())
    }

    proptest! {
        #[test]
        fn the_rate_is_the_lowest_that_keeps_the_goal(rounds in rounds(), goal in 6_u32..60) {
            let goal = f64::from(goal);
            let expected = by_definition(&rounds, goal);
            let found = series(&rounds).rate_for(goal, 1.0).unwrap();
            prop_assert!((found - expected).abs() <= expected * 1e-4 + 1e-6, "{found} is not {expected}");
        }

        #[test]
        fn a_bounded_series_forgets_no_byte(rounds in rounds(), most in 2_usize..9) {
            let whole = series(&rounds);
            let mut bounded = Series::bounded(most);
            for (seconds, bytes) in &rounds {
                bounded.push(Span { seconds: *seconds, bytes: *bytes });
            }
            prop_assert_eq!(bounded.total(), whole.total());
            prop_assert!(bounded.all().count() <= most);
            let all = whole.total();
            prop_assert_eq!(bounded.worst(all.seconds), Some(all.bytes));
        }
    }
}
