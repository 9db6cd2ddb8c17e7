//! Shuffle sharding: a hand of different queues for each flow, dealt by the bits of one hash.

/// Most cards of a hand: a hash has no more in it for any deck that may be configured (60 bits at most).
const HAND_MAX: usize = 16;

/// The `size` different numbers below `deck` that a hash stands for; no more than there are, and no more than 16.
pub(super) fn hand(mut hash: u64, deck: u32, size: u32) -> impl Iterator<Item = u32> {
    let size = (size.min(deck) as usize).min(HAND_MAX);
    // Of each card its number among those that were left, and which it is.
    let (mut numbers, mut cards) = ([0_u32; HAND_MAX], [0_u32; HAND_MAX]);
    for at in 0..size {
        let left = u64::from(deck) - at as u64;
        let number = (hash % left) as u32;
        hash /= left;
        // Those that were dealt before are counted past, the latest first, as each was numbered among what was left then.
        cards[at] = numbers[..at].iter().rev().fold(number, |card, earlier| card + u32::from(card >= *earlier));
        numbers[at] = number;
    }
    cards.into_iter().take(size)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    #[test]
    fn every_hand_of_a_deck_is_dealt_as_often() {
        let mut hands = BTreeMap::new();
        for hash in 0..5 * 4 * 3 {
            *hands.entry(hand(hash, 5, 3).collect::<Vec<_>>()).or_insert(0) += 1;
        }
        assert_eq!(hands.len(), 60, "all arrangements of three of five");
        assert!(hands.values().all(|times| *times == 1));
    }

    #[test]
    fn the_cards_of_a_hand_differ() {
        for (deck, size) in [(1, 1), (8, 8), (16, 15), (128, 6), (512, 6), (10_000_000, 2)] {
            for at in 0..1_000_u64 {
                let dealt: Vec<u32> = hand(at.wrapping_mul(0x9E37_79B9_7F4A_7C15), deck, size).collect();
                let different: HashSet<&u32> = dealt.iter().collect();
                assert_eq!(different.len(), size as usize, "{dealt:?}");
                assert!(dealt.iter().all(|card| *card < deck));
            }
        }
        assert_eq!(hand(7, 3, 9).count(), 3);
    }
}
