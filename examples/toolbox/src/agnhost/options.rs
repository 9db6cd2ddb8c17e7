//! Command lines of `agnhost`: `--name=value`, `--name value`, `-t value` and words.

use std::time::Duration;

pub struct Options {
    named: Vec<(String, String)>,
    pub words: Vec<String>,
}

/// Those that are true when nothing follows.
const SWITCHES: &[&str] = &[
    "tcp",
    "udp",
    "http",
    "close",
    "json-response",
    "break_on_expected_content",
    "help",
    "logtostderr",
    "alsologtostderr",
];

impl Options {
    pub fn read(arguments: &[String]) -> Result<Options, String> {
        let mut options = Options { named: Vec::new(), words: Vec::new() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let Some(name) = argument.strip_prefix('-').filter(|name| !name.is_empty()) else {
                options.words.push(argument.clone());
                continue;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None if SWITCHES.contains(&name) => (name, "true".to_owned()),
                None => (name, arguments.next().cloned().ok_or(format!("flag needs an argument: {argument}"))?),
            };
            options.named.push((name.to_owned(), value));
        }
        Ok(options)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.named
            .iter()
            .rev()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        self.get(name)
            .map_or(Ok(default), |value| value.parse().map_err(|_| format!("invalid argument {value:?} for --{name}")))
    }

    pub fn is(&self, name: &str, default: bool) -> Result<bool, String> {
        self.number(name, default)
    }

    pub fn duration(&self, name: &str) -> Result<Option<Duration>, String> {
        self.get(name).map(duration).transpose()
    }
}

/// As Go writes them: `1m30s`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("invalid duration {text:?}");
    let (mut rest, mut sum) = (text, Duration::ZERO);
    if rest == "0" {
        return Ok(sum);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let length = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..length] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        sum += Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())?;
        rest = &rest[length..];
    }
    Ok(sum)
}
