//! Levels, versions, and the labels that ask for them (`pod-security-admission/api`).

use std::fmt;

use crate::meta::field::{FieldError, Path};

/// How much a standard forbids, the strictest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Privileged,
    /// What is known to lead out of a container.
    Baseline,
    /// All that a careful pod can do without.
    Restricted,
}

const LEVELS: [(&str, Level); 3] =
    [("privileged", Level::Privileged), ("baseline", Level::Baseline), ("restricted", Level::Restricted)];

impl Level {
    fn parse(text: &str) -> Result<Level, &'static str> {
        let found = LEVELS.iter().find(|(name, _)| *name == text);
        found.map(|(_, level)| *level).ok_or("must be one of privileged, baseline, restricted")
    }
}

/// Of which version of Kubernetes the checks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `v1.x`.
    Minor(u32),
    /// Of this one.
    Latest,
}

impl Version {
    fn parse(text: &str) -> Result<Version, &'static str> {
        if text == "latest" {
            return Ok(Version::Latest);
        }
        let minor = text.strip_prefix("v1.").filter(|minor| {
            minor.bytes().all(|byte| byte.is_ascii_digit()) && (minor.len() == 1 || !minor.starts_with('0'))
        });
        minor.and_then(|minor| minor.parse().ok()).map(Version::Minor).ok_or("must be \"latest\" or \"v1.x\"")
    }
}

/// A level in a version, as `restricted:latest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standard {
    /// Its level.
    pub level: Level,
    /// Its version.
    pub version: Version,
}

impl Standard {
    const NONE: Standard = Standard { level: Level::Privileged, version: Version::Latest };
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = LEVELS.iter().find(|(_, level)| *level == self.level).map_or("", |(name, _)| name);
        match self.version {
            Version::Latest => write!(f, "{level}:latest"),
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

/// What is done about a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The pod is refused.
    Enforce,
    /// It is written down.
    Audit,
    /// The client is warned.
    Warn,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Enforce, Mode::Audit, Mode::Warn];

    /// The labels of level and version.
    pub const fn labels(self) -> [&'static str; 2] {
        match self {
            Mode::Enforce => ["pod-security.kubernetes.io/enforce", "pod-security.kubernetes.io/enforce-version"],
            Mode::Audit => ["pod-security.kubernetes.io/audit", "pod-security.kubernetes.io/audit-version"],
            Mode::Warn => ["pod-security.kubernetes.io/warn", "pod-security.kubernetes.io/warn-version"],
        }
    }
}

/// What a namespace asks of its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Pods that violate it are refused.
    pub enforce: Standard,
    /// What violates it is written down.
    pub audit: Standard,
    /// Who makes what violates it is warned.
    pub warn: Standard,
}

impl Policy {
    /// What the labels say. There is always a policy: where a label is wrong, pods are enforced to the strictest, and nobody is
    /// warned; the errors say what is wrong.
    pub fn read<'a>(label: impl Fn(&str) -> Option<&'a str>) -> (Policy, Vec<FieldError>) {
        let mut policy = Policy { enforce: Standard::NONE, audit: Standard::NONE, warn: Standard::NONE };
        let mut errors = Vec::new();
        let invalid = |name: &str, value: &str, why: &str| {
            FieldError::invalid(Path::new("metadata.labels").key(name), value, why)
        };
        let mut enforces = false;
        for mode in Mode::ALL {
            let [level, version] = mode.labels();
            let standard = policy.of(mode);
            if let Some(text) = label(level) {
                let parsed = Level::parse(text);
                enforces |= mode == Mode::Enforce && parsed.is_ok();
                standard.level = parsed.unwrap_or_else(|why| {
                    errors.push(invalid(level, text, why));
                    if mode == Mode::Enforce { Level::Restricted } else { Level::Privileged }
                });
            }
            if let Some(text) = label(version) {
                standard.version = Version::parse(text).unwrap_or_else(|why| {
                    errors.push(invalid(version, text, why));
                    Version::Latest
                });
            }
        }
        // Whoever is refused pods wants to hear of it where they are meant to be made.
        let [warn, version] = Mode::Warn.labels();
        if label(warn).is_none() && enforces && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if label(version).is_none() {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }

    fn of(&mut self, mode: Mode) -> &mut Standard {
        match mode {
            Mode::Enforce => &mut self.enforce,
            Mode::Audit => &mut self.audit,
            Mode::Warn => &mut self.warn,
        }
    }
}
