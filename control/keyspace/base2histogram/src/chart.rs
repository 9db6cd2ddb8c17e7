//! Histograms as text, one under the other.

use std::fmt::Write;

use crate::Histogram;

/// Characters of the longest bar.
const WIDTH: u128 = 40;

/// Named histograms to be printed, a row for each power of two.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    histograms: Vec<(String, Histogram)>,
}

impl AsciiChart {
    /// A chart without histograms.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a histogram below those already there.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.histograms.push((name.into(), histogram));
        self
    }

    /// The chart with every count. Bars are relative to the largest row of all, so histograms can be compared.
    pub fn detailed(&self) -> String {
        let charts: Vec<_> = self.histograms.iter().map(|(name, histogram)| (name, histogram.by_power())).collect();
        let largest = charts.iter().flat_map(|(_, rows)| rows).map(|row| row.2).max().unwrap_or(0).max(1);
        let mut text = String::new();
        for (name, rows) in charts {
            let total = rows.iter().fold(0u64, |total, row| total.saturating_add(row.2));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name} (n={total})");
            for (first, last, count) in rows {
                let range = if first == last { first.to_string() } else { format!("{first}–{last}") };
                // Rounded up: what occurs is seen.
                let bar = (u128::from(count) * WIDTH).div_ceil(u128::from(largest)) as usize;
                let _ = writeln!(text, "{range:>16} │{} {count}", "█".repeat(bar));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_powers_of_two_and_bars_are_relative_to_the_largest_row() {
        let mut slow = Histogram::new();
        slow.record_n(5, 40);
        slow.record_n(7, 40);
        slow.record_n(33, 1);
        let mut quick = Histogram::new();
        quick.record_n(0, 20);
        quick.record_n(1, 40);
        let printed = AsciiChart::new().add("slow", slow).add("quick", quick).add("never", Histogram::new()).detailed();
        let bar = |length| "█".repeat(length);
        let expected = [
            "slow (n=81)".to_owned(),
            format!("             4–7 │{} 80", bar(40)),
            "            8–15 │ 0".to_owned(),
            "           16–31 │ 0".to_owned(),
            "           32–63 │█ 1".to_owned(),
            "quick (n=60)".to_owned(),
            format!("               0 │{} 20", bar(10)),
            format!("               1 │{} 40", bar(20)),
            "never (n=0)".to_owned(),
        ];
        assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
    }
}
