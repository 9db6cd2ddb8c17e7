//! What a node says that its containers have used so far, and what two such samples say of how much they use. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Uses;

/// A container that began with an earlier sample or after it is known by its own beginning, once it has run for so long.
const LIFE_MIN_MS: i64 = 1_000;
/// One that has run for longer says by that nothing about now.
const LIFE_MAX_MS: i64 = 60_000;
/// Containers of a pod that are believed; the API takes no pod with more.
const CONTAINERS_MAX: usize = 1_000;

/// What is said of one container, or of the node, at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counted {
    /// Milliseconds since 1970, by the node's clock.
    pub at_ms: i64,
    pub started_ms: Option<i64>,
    /// Seconds of processor time since it began.
    cpu: Option<f64>,
    memory_bytes: Option<f64>,
}

/// How much is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Used {
    /// The end of the time that it was measured in.
    pub at_ms: i64,
    /// Its length.
    pub window_ms: i64,
    /// Thousand-millionths of a processor.
    pub nanocores: u64,
    pub memory_bytes: u64,
}

/// All that a node says at a moment.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Sample {
    node: Counted,
    /// By namespace and name (`a/b`), then by container.
    pods: HashMap<Arc<str>, BTreeMap<Arc<str>, Counted>>,
}

impl Sample {
    /// Reads the Prometheus text of a kubelet's `/metrics/resource`. What is of another form, and what is said of pods that
    /// `known` does not give a name of, is passed over. What has no time of its own is of `now_ms`.
    pub fn read(text: &str, now_ms: i64, known: impl Fn(&str) -> Option<Arc<str>>) -> Sample {
        let mut sample = Sample::default();
        for line in text.lines() {
            let Some(Line { name, labels, value, at_ms }) = Line::read(line) else { continue };
            let at_ms = at_ms.unwrap_or(now_ms);
            let counted = if name.starts_with("node_") {
                &mut sample.node
            } else if name.starts_with("container_") {
                let label = |wanted: &str| labels.iter().find(|(key, _)| *key == wanted).map(|(_, value)| &**value);
                let (Some(namespace), Some(pod), Some(container)) =
                    (label("namespace"), label("pod"), label("container"))
                else {
                    continue;
                };
                let Some(pod) = known(&format!("{namespace}/{pod}")) else { continue };
                let containers = sample.pods.entry(pod).or_default();
                if containers.len() >= CONTAINERS_MAX && !containers.contains_key(container) {
                    continue;
                }
                containers.entry(container.into()).or_default()
            } else {
                continue;
            };
            match name.split_once('_').map_or("", |(_, what)| what) {
                "cpu_usage_seconds_total" => (counted.cpu, counted.at_ms) = (Some(value), at_ms),
                "memory_working_set_bytes" => counted.memory_bytes = Some(value),
                "start_time_seconds" => counted.started_ms = Some((value * 1_000.0) as i64),
                _ => {}
            }
        }
        sample
    }

    /// What the node uses, by an earlier sample of it.
    pub fn node(&self, earlier: Option<&Sample>) -> Option<Uses> {
        let used = used(earlier.map(|earlier| &earlier.node), &self.node)?;
        Some(vec![(Arc::default(), used)])
    }

    /// What the containers of a pod use; nothing is said of it before something is known of all of them.
    pub fn pod(&self, earlier: Option<&Sample>, name: &str) -> Option<Uses> {
        let before = earlier.and_then(|earlier| earlier.pods.get(name));
        let containers = self.pods.get(name)?.iter();
        let one = |(name, now): (&Arc<str>, &Counted)| {
            Some((name.clone(), used(before.and_then(|before| before.get(name)), now)?))
        };
        containers.map(one).collect()
    }
}

/// How much was used between two counts, or since it began where that is later.
fn used(earlier: Option<&Counted>, now: &Counted) -> Option<Used> {
    let (cpu, memory) = (now.cpu?, now.memory_bytes?);
    let usable = |earlier: &&Counted| {
        let is_same_life = now.started_ms.is_none_or(|started| started <= earlier.at_ms);
        earlier.at_ms < now.at_ms && is_same_life && earlier.cpu.is_some_and(|before| before <= cpu)
    };
    let (window_ms, seconds) = match (earlier.filter(usable), now.started_ms) {
        (Some(earlier), _) => (now.at_ms - earlier.at_ms, cpu - earlier.cpu.unwrap_or_default()),
        (None, Some(started)) => (now.at_ms.checked_sub(started)?, cpu),
        (None, None) => return None,
    };
    if earlier.filter(usable).is_none() && !(LIFE_MIN_MS..=LIFE_MAX_MS).contains(&window_ms) {
        return None;
    }
    let nanocores = seconds * 1e12 / window_ms as f64;
    Some(Used { at_ms: now.at_ms, window_ms, nanocores: nanocores as u64, memory_bytes: memory as u64 })
}

/// `name{key="value",…} number [milliseconds]`.
struct Line<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
    at_ms: Option<i64>,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Option<Line<'a>> {
        let end = line.find(['{', ' ', '\t'])?;
        let (name, mut rest) = line.split_at(end);
        if name.is_empty() || name.starts_with('#') {
            return None;
        }
        let mut labels = Vec::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner.trim_start();
            while !rest.starts_with('}') {
                let (key, after) = rest.split_once("=\"")?;
                let (value, after) = quoted(after)?;
                labels.push((key.trim(), value));
                rest = after.trim_start();
                rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
            }
            rest = &rest[1..];
        }
        let mut numbers = rest.split_whitespace();
        let value: f64 = numbers.next()?.parse().ok()?;
        let at_ms = numbers.next().map(str::parse).transpose().ok()?;
        // A counter or a size is neither negative nor without an end.
        (value.is_finite() && value >= 0.0).then_some(Line { name, labels, value, at_ms })
    }
}

/// A text up to its closing quotation mark, and what is after that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match letters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Sample {
        Sample::read(text, 9_000, |name| name.starts_with("n/").then(|| name.into()))
    }

    #[test]
    fn reads_what_a_kubelet_says() {
        let sample = read(concat!(
            "# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time\n",
            "# TYPE container_cpu_usage_seconds_total counter\n",
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5e+00 1000\n",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 4096 1000\n",
            "container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 0.5\n",
            "container_swap_usage_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 0 1000\n",
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"other\",pod=\"p\"} 1 1000\n",
            "container_cpu_usage_seconds_total{ pod=\"q\" , namespace=\"n\",container=\"a\\\"b\\n}\" } 2\n",
            "node_cpu_usage_seconds_total 7 1500\n",
            "node_memory_working_set_bytes 100 1500\n",
            "pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 1 1000\n",
        ));
        let c = Counted { at_ms: 1_000, started_ms: Some(500), cpu: Some(1.5), memory_bytes: Some(4096.0) };
        assert_eq!(sample.node, Counted { at_ms: 1_500, started_ms: None, cpu: Some(7.0), memory_bytes: Some(100.0) });
        assert_eq!(sample.pods.len(), 2, "of another pod nothing is kept: {sample:?}");
        assert_eq!(sample.pods["n/p"], BTreeMap::from([("c".into(), c)]));
        let odd = Counted { at_ms: 9_000, cpu: Some(2.0), ..Counted::default() };
        assert_eq!(sample.pods["n/q"], BTreeMap::from([("a\"b\n}".into(), odd)]));
    }

    #[test]
    fn what_is_no_number_of_anything_is_passed_over() {
        for line in [
            "",
            "{",
            "node_cpu_usage_seconds_total",
            "node_cpu_usage_seconds_total ",
            "node_cpu_usage_seconds_total NaN",
            "node_cpu_usage_seconds_total +Inf",
            "node_cpu_usage_seconds_total -1",
            "node_cpu_usage_seconds_total 1 never",
            "node_cpu_usage_seconds_total{a=\"b} 1",
            "node_cpu_usage_seconds_total{a} 1",
            "container_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 1",
        ] {
            assert_eq!(read(line), Sample::default(), "{line}");
        }
        let many: String = (0..2 * CONTAINERS_MAX)
            .map(|at| format!("container_cpu_usage_seconds_total{{container=\"c{at}\",namespace=\"n\",pod=\"p\"}} 1\n"))
            .collect();
        assert_eq!(read(&many).pods["n/p"].len(), CONTAINERS_MAX);
    }

    #[test]
    fn two_counts_are_a_rate() {
        let counted = |at_ms, started_ms, cpu| Counted { at_ms, started_ms, cpu: Some(cpu), memory_bytes: Some(5.0) };
        for (earlier, now, expected) in [
            (Some(counted(1_000, None, 1.0)), counted(3_000, None, 2.0), Some((2_000, 500_000_000))),
            (Some(counted(1_000, Some(500), 1.0)), counted(3_000, Some(500), 1.0), Some((2_000, 0))),
            // It was begun again.
            (Some(counted(1_000, Some(500), 9.0)), counted(5_000, Some(3_000), 1.0), Some((2_000, 500_000_000))),
            (Some(counted(1_000, None, 2.0)), counted(3_000, None, 1.0), None),
            // It is new.
            (None, counted(5_000, Some(3_000), 1.0), Some((2_000, 500_000_000))),
            (None, counted(3_500, Some(3_000), 1.0), None),
            (None, counted(500_000, Some(3_000), 1.0), None),
            (None, counted(5_000, None, 1.0), None),
            (None, counted(5_000, Some(i64::MIN), 1.0), None),
            // The same sample twice.
            (Some(counted(3_000, None, 1.0)), counted(3_000, None, 1.0), None),
        ] {
            let found = used(earlier.as_ref(), &now).map(|used| (used.window_ms, used.nanocores));
            assert_eq!(found, expected, "{earlier:?} {now:?}");
        }
        assert_eq!(used(None, &Counted { memory_bytes: None, ..counted(5_000, Some(3_000), 1.0) }), None);
    }

    #[test]
    fn a_pod_is_shown_when_all_of_it_is_known() {
        let line = |container: &str, cpu: f64, at: i64| {
            let labels = format!("{{container=\"{container}\",namespace=\"n\",pod=\"p\"}}");
            format!(
                "container_cpu_usage_seconds_total{labels} {cpu} {at}\n\
                 container_memory_working_set_bytes{labels} 1 {at}\n"
            )
        };
        let first = read(&line("a", 1.0, 1_000));
        let second = read(&(line("a", 2.0, 2_000) + &line("b", 1.0, 2_000)));
        let third = read(&(line("a", 3.0, 3_000) + &line("b", 1.5, 3_000)));
        assert_eq!(first.pod(None, "n/p"), None);
        assert_eq!(second.pod(Some(&first), "n/p"), None, "b was counted once");
        let found = third.pod(Some(&second), "n/p").expect("both were counted twice");
        let found: Vec<_> = found.iter().map(|(name, used)| (&**name, used.nanocores)).collect();
        assert_eq!(found, [("a", 1_000_000_000), ("b", 500_000_000)]);
        assert_eq!(third.pod(Some(&second), "n/other"), None);
    }
}
