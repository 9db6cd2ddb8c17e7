//! What a workload asks for: annotations, called as Knative's autoscaler calls its own (`autoscaling.knative.dev/…`), with the same
//! defaults and bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::autoscaler::go_duration;

/// What the names of all of them begin with. A workload that has any is scaled by what is asked of it.
pub(super) const PREFIX: &str = "autoscaling.coracle.dev/";

/// How a workload is scaled.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    /// `min-scale`: never fewer; 0 when absent.
    pub min: i32,
    /// `max-scale`: never more; 0 or nothing is no limit.
    pub max: Option<i32>,
    /// `target` (100) times `target-utilization-percentage` (70): requests under way that each pod is to have.
    pub target: f64,
    /// `window` (60 s): what is usual is the average of so long,
    pub window: Duration,
    /// and what is sudden that of `panic-window-percentage` (10) of it.
    pub panic_window: Duration,
    /// `panic-threshold-percentage` (200): so many times as many pods as are ready are needed suddenly.
    pub panic_threshold: f64,
    /// `scale-down-delay` (0 s): fewer are wanted for so long before there are fewer.
    pub delay: Duration,
    /// `scale-to-zero-pod-retention-period` (0 s): the last one stays for so long.
    pub retention: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min: 0,
            max: None,
            target: 70.0,
            window: Duration::from_secs(60),
            panic_window: Duration::from_secs(6),
            panic_threshold: 2.0,
            delay: Duration::ZERO,
            retention: Duration::ZERO,
        }
    }
}

/// What the annotations ask for: nothing, or something that can be done, or why it cannot.
pub(super) fn read(annotations: &BTreeMap<String, String>) -> Result<Option<Settings>, String> {
    let mut said =
        annotations.iter().filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, &**value))).peekable();
    if said.peek().is_none() {
        return Ok(None);
    }
    let mut settings = Settings::default();
    let (mut target, mut utilization, mut panic_percentage) = (100.0, 70.0, 10.0);
    let hour = Duration::from_secs(3600);
    for (name, value) in said {
        let wrong = |expected: &str| format!("annotation {PREFIX}{name}: {value:?} is not {expected}");
        let whole = || {
            let number = value.parse::<i32>().ok().filter(|number| *number >= 0);
            number.ok_or_else(|| wrong("a whole number from 0"))
        };
        let number = |least: f64, most: f64| {
            let number = value.parse::<f64>().ok().filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| wrong(&format!("a number from {least} to {most}")))
        };
        let duration = |least: Duration| {
            let duration = go_duration(value).filter(|duration| !value.is_empty() && (least..=hour).contains(duration));
            duration.ok_or_else(|| wrong(&format!("a time from {least:?} to 1h, as in \"90s\"")))
        };
        match name {
            "min-scale" => settings.min = whole()?,
            "max-scale" => settings.max = Some(whole()?).filter(|max| *max > 0),
            "target" => target = number(0.01, 1e6)?,
            "target-utilization-percentage" => utilization = number(1.0, 100.0)?,
            "window" => settings.window = duration(Duration::from_secs(6))?,
            "panic-window-percentage" => panic_percentage = number(1.0, 100.0)?,
            "panic-threshold-percentage" => settings.panic_threshold = number(110.0, 1000.0)? / 100.0,
            "scale-down-delay" => settings.delay = duration(Duration::ZERO)?,
            "scale-to-zero-pod-retention-period" => settings.retention = duration(Duration::ZERO)?,
            _ => return Err(format!("annotation {PREFIX}{name} is not known")),
        }
    }
    if settings.max.is_some_and(|max| max < settings.min) {
        return Err(format!("annotation {PREFIX}max-scale is less than {PREFIX}min-scale"));
    }
    settings.target = (target * utilization / 100.0_f64).max(0.01);
    // No less than a second, which is how often is looked.
    settings.panic_window = settings.window.mul_f64(panic_percentage / 100.0).max(Duration::from_secs(1));
    Ok(Some(settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let named = |(name, value): &(&str, &str)| (format!("{PREFIX}{name}"), (*value).to_owned());
        read(&pairs.iter().map(named).collect())
    }

    #[test]
    fn any_of_them_asks_and_what_is_not_said_is_as_usual() {
        assert_eq!(read(&BTreeMap::from([("other/target".to_owned(), "1".to_owned())])), Ok(None));
        assert_eq!(of(&[("min-scale", "0")]), Ok(Some(Settings::default())));
        let all = of(&[
            ("min-scale", "1"),
            ("max-scale", "9"),
            ("target", "10"),
            ("target-utilization-percentage", "50"),
            ("window", "2m"),
            ("panic-window-percentage", "20"),
            ("panic-threshold-percentage", "300"),
            ("scale-down-delay", "15s"),
            ("scale-to-zero-pod-retention-period", "1m5s"),
        ]);
        let seconds = Duration::from_secs;
        let expected = Settings {
            min: 1,
            max: Some(9),
            target: 5.0,
            window: seconds(120),
            panic_window: seconds(24),
            panic_threshold: 3.0,
            delay: seconds(15),
            retention: seconds(65),
        };
        assert_eq!(all, Ok(Some(expected)));
        assert_eq!(of(&[("max-scale", "0")]).unwrap().unwrap().max, None);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (name, value) in [
            ("min-scale", "-1"),
            ("min-scale", "x"),
            ("max-scale", "1.5"),
            ("target", "0"),
            ("target", "NaN"),
            ("target-utilization-percentage", "101"),
            ("window", "5s"),
            ("window", "2h"),
            ("window", "60"),
            ("window", ""),
            ("panic-threshold-percentage", "100"),
            ("scale-down-delay", "-1s"),
            ("metric", "rps"),
            ("minscale", "1"),
        ] {
            let why = of(&[(name, value)]).unwrap_err();
            assert!(why.contains(&format!("autoscaling.coracle.dev/{name}")), "{name} {value}: {why}");
        }
        assert!(of(&[("min-scale", "2"), ("max-scale", "1")]).is_err());
    }
}
