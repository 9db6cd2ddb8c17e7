//! Sets of completion indexes as ordered intervals: `0-3,5`. Everything about them costs by intervals, not by indexes.

use std::fmt;

/// Indexes in order; intervals with both ends, none touching the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(u32, u32)>);

impl Indexes {
    /// Reads those below `completions`; parts that nobody understands are passed over.
    pub(super) fn parse(text: &str, completions: u32) -> Self {
        let mut read: Vec<(u32, u32)> = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else { continue };
            if first >= completions {
                break;
            }
            let last = last.min(completions - 1);
            if first > last || read.last().is_some_and(|(_, end)| first <= *end) {
                continue;
            }
            match read.last_mut() {
                Some((_, end)) if first == *end + 1 => *end = last,
                _ => read.push((first, last)),
            }
        }
        Self(read)
    }

    /// These, in any order.
    pub(super) fn of(indexes: impl IntoIterator<Item = u32>) -> Self {
        let mut indexes: Vec<u32> = indexes.into_iter().collect();
        indexes.sort_unstable();
        let mut all = Self::default();
        indexes.into_iter().for_each(|index| all.append((index, index)));
        all
    }

    /// Both together.
    pub(super) fn union(&self, other: &Self) -> Self {
        let mut all = Self::default();
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x.0 < y.0 => a.next(),
                (_, Some(_)) => b.next(),
                (_, None) => a.next(),
            };
            match next {
                Some(interval) => all.append(*interval),
                None => return all,
            }
        }
    }

    /// Adds an interval that does not begin before the last one.
    fn append(&mut self, (first, last): (u32, u32)) {
        match self.0.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => self.0.push((first, last)),
        }
    }

    /// How many there are.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// How many are in both.
    pub(super) fn common(&self, other: &Self) -> u64 {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut count = 0;
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            let (first, last) = (x.0.max(y.0), x.1.min(y.1));
            if first <= last {
                count += u64::from(last - first) + 1;
            }
            if x.1 <= y.1 {
                a.next();
            } else {
                b.next();
            }
        }
        count
    }

    /// The first `count` below `completions` that are not among these.
    pub(super) fn absent(&self, count: usize, completions: u32) -> Vec<u32> {
        let mut absent = Vec::new();
        let mut next = 0;
        let ends = [(completions, completions)];
        for (first, last) in self.0.iter().chain(&ends) {
            while next < *first && next < completions && absent.len() < count {
                absent.push(next);
                next += 1;
            }
            next = next.max(last.saturating_add(1));
        }
        absent
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_is_written_and_passes_over_what_is_not() {
        for (text, completions, expected) in [
            ("", 5, ""),
            ("0", 5, "0"),
            ("0-3,5", 10, "0-3,5"),
            ("0-1", 10, "0,1"),
            ("0,1,2", 10, "0-2"),
            ("1-9", 5, "1-4"),
            ("7,8", 5, ""),
            ("x,2,3-y,4", 10, "2,4"),
            ("5-1,6", 10, "6"),
            ("3,1", 10, "3"),
            ("99999999999", 10, ""),
        ] {
            assert_eq!(Indexes::parse(text, completions).to_string(), expected, "{text}");
        }
    }

    fn set() -> impl Strategy<Value = BTreeSet<u32>> {
        prop::collection::btree_set(0..40_u32, 0..30)
    }

    proptest! {
        /// Intervals are sets.
        #[test]
        fn behaves_like_a_set(a in set(), b in set(), count in 0..50_usize) {
            let (x, y) = (Indexes::of(a.iter().copied()), Indexes::of(b.iter().copied()));
            let all: BTreeSet<u32> = a.union(&b).copied().collect();
            let union = x.union(&y);
            prop_assert_eq!(&union, &Indexes::of(all.iter().copied()));
            prop_assert_eq!(union.total(), all.len() as u64);
            prop_assert_eq!(x.common(&y), a.intersection(&b).count() as u64);
            prop_assert!((0..45).all(|index| x.contains(index) == a.contains(&index)));
            prop_assert_eq!(Indexes::parse(&x.to_string(), 40), x.clone());
            let absent: Vec<u32> = (0..40).filter(|index| !a.contains(index)).take(count).collect();
            prop_assert_eq!(x.absent(count, 40), absent);
        }
    }
}
