//! Means with their standard error, and percentiles.

/// A running mean and the spread around it, by Welford's method: no sum of squares that cancels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    count: usize,
    mean: f64,
    /// Sum of the squared distances from the mean.
    squares: f64,
}

impl Mean {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        let distance = value - self.mean;
        self.mean += distance / self.count as f64;
        self.squares += distance * (value - self.mean);
    }

    /// How many values there were.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Their mean; 0 if there were none.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard error of the mean, as llama-perplexity has it: the variance of the values (their squared
    /// distances over their number) over their number less one, of which the root. 0 for fewer than two values.
    pub fn standard_error(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let count = self.count as f64;
        (self.squares / count / (count - 1.0)).sqrt()
    }
}

/// The value below which the share `fraction` of the values lies, between two of them by interpolation (type 7 of
/// Hyndman and Fan, "Sample Quantiles in Statistical Packages", 1996; llama-perplexity's and NumPy's).
///
/// # Panics
/// If there are no values, or `fraction` is outside of 0 to 1.
pub fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    assert!(!sorted.is_empty(), "no values have no percentile");
    assert!((0.0..=1.0).contains(&fraction), "{fraction} is no share");
    let place = fraction * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    let share = place - place.floor();
    (1.0 - share) * sorted[below] + share * sorted[above]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mean(values: &[f64]) -> Mean {
        let mut mean = Mean::default();
        values.iter().for_each(|&value| mean.add(value));
        mean
    }

    #[test]
    fn means_and_errors_by_hand() {
        // Mean 5, squared distances 9 + 1 + 1 + 9 = 20; 20 / 4 / 3 = 5 / 3.
        let four = mean(&[2.0, 4.0, 6.0, 8.0]);
        assert_eq!((four.count(), four.mean()), (4, 5.0));
        assert!((four.standard_error() - (5.0_f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!((mean(&[]).mean(), mean(&[]).standard_error()), (0.0, 0.0));
        assert_eq!((mean(&[3.0]).mean(), mean(&[3.0]).standard_error()), (3.0, 0.0));
    }

    #[test]
    fn percentiles_by_hand() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert_eq!([0.0, 0.5, 1.0].map(|share| percentile(&values, share)), [1.0, 3.0, 8.0]);
        // Place 0.25 * 3 = 0.75: three quarters of the way from 1 to 2.
        assert_eq!(percentile(&values, 0.25), 1.75);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
    }

    proptest! {
        #[test]
        fn a_percentile_lies_between_its_neighbours(
            mut values in prop::collection::vec(-1e3..1e3_f64, 1..50),
            fraction in 0.0..=1.0_f64,
        ) {
            values.sort_by(f64::total_cmp);
            let value = percentile(&values, fraction);
            // The two shares are rounded, and so is their sum: three roundings of values up to 1000.
            let slack = 3.0 * 1e3 * f64::EPSILON;
            prop_assert!(values[0] - slack <= value && value <= values[values.len() - 1] + slack);
        }
    }
}
