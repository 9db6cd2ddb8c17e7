//! Patterns as the shell knows them: `*`, `?`, `[a-z]`, and `\` before what means itself.

/// Whether all of a text is what the pattern means.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut retry = None;
    loop {
        let next = pattern.get(p);
        let step = match (next, text.get(t)) {
            (Some('*'), _) => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            (None, None) => return true,
            (Some('?'), Some(_)) => Some(1),
            (Some('['), Some(c)) => match class(&pattern[p..], *c) {
                Some((length, true)) => Some(length),
                Some((_, false)) => None,
                None => (*c == '[').then_some(1),
            },
            (Some('\\'), Some(c)) => (pattern.get(p + 1) == Some(c)).then_some(2),
            (Some(expected), Some(c)) => (expected == c).then_some(1),
            _ => None,
        };
        match (step, retry) {
            (Some(step), _) => {
                p += step;
                t += 1;
            }
            (None, Some((after, at))) if at < text.len() => {
                retry = Some((after, at + 1));
                (p, t) = (after, at + 1);
            }
            _ => return false,
        }
    }
}

/// The length of a class at the beginning of a pattern and whether a character is of it.
fn class(pattern: &[char], c: char) -> Option<(usize, bool)> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let first = 1 + usize::from(negated);
    let (mut at, mut found) = (first, false);
    loop {
        let from = *pattern.get(at)?;
        if from == ']' && at > first {
            return Some((at + 1, found != negated));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some('-'), Some(to)) if *to != ']' => {
                found |= (from..=*to).contains(&c);
                at += 3;
            }
            _ => {
                found |= from == c;
                at += 1;
            }
        }
    }
}
