//! What schedules say, as tables taken from the reference's own tests and answers, and laws.

use jiff::Timestamp;
use proptest::prelude::*;

use super::{Schedule, Zone};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// The moments after `from`, in UTC.
fn moments(schedule: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let schedule = Schedule::parse(schedule).expect(schedule).within(Zone::load(zone).expect(zone));
    let mut now = at(from);
    let next = || {
        now = schedule.next(now)?;
        Some(now.to_string())
    };
    std::iter::from_fn(next).take(count).collect()
}

#[test]
fn names_the_moments_that_the_reference_names() {
    for (schedule, from, expected) in [
        ("0/15 * * * *", "2012-07-09T14:45:00Z", "2012-07-09T15:00:00Z"),
        ("*/15 * * * *", "2012-07-09T14:59:59Z", "2012-07-09T15:00:00Z"),
        ("20-35/15 * * * *", "2012-07-09T15:45:00Z", "2012-07-09T16:20:00Z"),
        ("*/15 1-20 * * *", "2012-07-09T23:46:00Z", "2012-07-10T01:00:00Z"),
        ("0 0 9 Apr-Oct ?", "2012-07-09T23:35:00Z", "2012-08-09T00:00:00Z"),
        ("*/15 * * Apr,Oct Mon", "2012-07-09T23:46:00Z", "2012-10-01T00:00:00Z"),
        ("0 0 * Feb Mon", "2012-07-09T23:35:00Z", "2013-02-04T00:00:00Z"),
        ("0 0 1,15 * Sun", "2012-07-15T00:00:00Z", "2012-07-22T00:00:00Z"),
        ("0 0 * * Sun", "2012-07-15T00:00:00Z", "2012-07-22T00:00:00Z"),
        ("0 0 29 2 ?", "2012-07-09T23:35:00Z", "2016-02-29T00:00:00Z"),
        ("@hourly", "2012-07-09T23:35:51Z", "2012-07-10T00:00:00Z"),
        ("@weekly", "2012-07-09T23:35:00Z", "2012-07-15T00:00:00Z"),
        ("@yearly", "2012-07-09T23:35:00Z", "2013-01-01T00:00:00Z"),
        ("@every 1h30m", "2012-07-09T23:35:51.5Z", "2012-07-10T01:05:51Z"),
        ("@every 10ms", "2012-07-09T23:35:51Z", "2012-07-09T23:35:52Z"),
        ("@every -5m", "2012-07-09T23:35:51Z", "2012-07-09T23:35:52Z"),
        ("TZ=Asia/Tokyo 0 9 * * *", "2012-07-09T23:35:51Z", "2012-07-10T00:00:00Z"),
        ("0 0 1 1 *", "1969-12-31T23:59:59.5Z", "1970-01-01T00:00:00Z"),
    ] {
        let next = Schedule::parse(schedule).expect(schedule).next(at(from));
        assert_eq!(next, Some(at(expected)), "{schedule} after {from}");
    }
    for never in ["0 0 31 2 *", "59 23 31 6,9 *", ", * * * *"] {
        assert_eq!(Schedule::parse(never).expect(never).next(at("2026-01-01T00:00:00Z")), None, "{never}");
    }
}

#[test]
fn an_hour_that_is_left_out_or_comes_twice_counts_as_in_the_reference() {
    // robfig/cron's own cases: New York leaves out two o'clock on 11 March 2012, and repeats one o'clock on 4 November.
    let new_york = "America/New_York";
    for (schedule, from, expected) in [
        ("30 2 11 Mar ?", "2012-03-11T05:00:00Z", vec!["2013-03-11T06:30:00Z"]),
        ("0 * * * ?", "2012-03-11T06:00:00Z", vec!["2012-03-11T07:00:00Z", "2012-03-11T08:00:00Z"]),
        ("0 1 * * ?", "2012-03-11T05:00:00Z", vec!["2012-03-11T06:00:00Z", "2012-03-12T05:00:00Z"]),
        ("0 2 * * ?", "2012-03-11T05:00:00Z", vec!["2012-03-12T06:00:00Z"]),
        ("30 2 04 Nov ?", "2012-11-04T04:00:00Z", vec!["2012-11-04T07:30:00Z"]),
        ("45 1 04 Nov ?", "2012-11-04T05:45:00Z", vec!["2012-11-04T06:45:00Z"]),
        (
            "0 * * * ?",
            "2012-11-04T04:00:00Z",
            vec!["2012-11-04T05:00:00Z", "2012-11-04T06:00:00Z", "2012-11-04T07:00:00Z"],
        ),
        ("0 3 * * ?", "2012-11-04T04:00:00Z", vec!["2012-11-04T08:00:00Z", "2012-11-05T08:00:00Z"]),
    ] {
        assert_eq!(moments(schedule, new_york, from, expected.len()), expected, "{schedule}");
    }
    // A midnight that is left out.
    let expected = ["2018-11-05T02:00:00Z"];
    assert_eq!(moments("0 0 * * *", "America/Sao_Paulo", "2018-11-03T04:00:00Z", 1), expected);
    assert_eq!(moments("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 1), ["2026-03-30T00:30:00Z"]);
}

#[test]
fn what_is_no_schedule_is_told_in_the_words_of_the_reference() {
    for (schedule, expected) in [
        ("", "empty spec string"),
        ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
        ("* * * * * *", "expected exactly 5 fields, found 6: [* * * * * *]"),
        ("xyz", "expected exactly 5 fields, found 1: [xyz]"),
        ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
        ("1/2/3 * * * *", "too many slashes: 1/2/3"),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("* * * * 7", "end of range (7) above maximum (6): 7"),
        ("5-4 * * * *", "beginning of range (5) beyond end of range (4): 5-4"),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("*/-3 * * * *", "negative number (-3) not allowed: -3"),
        ("-3 * * * *", "failed to parse int from : strconv.Atoi: parsing \"\": invalid syntax"),
        ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
        (
            "99999999999999999999 * * * *",
            "failed to parse int from 99999999999999999999: strconv.Atoi: parsing \"99999999999999999999\": value out of \
             range",
        ),
        ("@unrecognized", "unrecognized descriptor: @unrecognized"),
        ("@every xs", "failed to parse duration @every xs: time: invalid duration \"xs\""),
        ("@every 3", "failed to parse duration @every 3: time: missing unit in duration \"3\""),
        ("@every 3d", "failed to parse duration @every 3d: time: unknown unit \"d\" in duration \"3d\""),
        ("@every 3000000000h", "failed to parse duration @every 3000000000h: time: invalid duration \"3000000000h\""),
        ("TZ=0", "invalid schedule format: runtime error: slice bounds out of range [:-1]"),
        ("TZ=Mars/Base * * * * *", "provided bad location Mars/Base: unknown time zone Mars/Base"),
        ("CRON_TZ=../etc * * * * *", "provided bad location ../etc: time: invalid location name"),
    ] {
        assert_eq!(Schedule::parse(schedule).expect_err(schedule).to_string(), expected);
    }
}

#[test]
fn zones_are_known_by_their_exact_names() {
    for (name, shown) in [
        ("", "2026-07-01T12:00:00Z"),
        ("UTC", "2026-07-01T12:00:00Z"),
        ("Etc/UTC", "2026-07-01T12:00:00Z"),
        ("Europe/Berlin", "2026-07-01T14:00:00+02:00"),
        ("US/Pacific", "2026-07-01T05:00:00-07:00"),
        ("Asia/Kathmandu", "2026-07-01T17:45:00+05:45"),
    ] {
        assert_eq!(Zone::load(name).expect(name).format(at("2026-07-01T12:00:00Z")), shown, "{name}");
    }
    for name in ["europe/berlin", "Europe", "Local", "Etc/Unknown"] {
        assert_eq!(Zone::load(name).expect_err(name).to_string(), format!("unknown time zone {name}"));
    }
}

/// A field: its text, and whether it allows a number.
fn field(least: i8, most: i8) -> impl Strategy<Value = (String, Vec<i8>)> {
    let number = least..=most;
    prop_oneof![
        Just(("*".to_owned(), (least..=most).collect())),
        (number.clone(), 1..=most).prop_map(move |(from, step)| {
            (format!("{from}/{step}"), (from..=most).step_by(usize::try_from(step).unwrap_or(1)).collect())
        }),
        (number.clone(), number.clone()).prop_map(|(a, b)| {
            let (a, b) = (a.min(b), a.max(b));
            (format!("{a}-{b}"), (a..=b).collect())
        }),
        prop::collection::btree_set(number, 1..4).prop_map(|numbers| {
            let texts: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            (texts.join(","), numbers.into_iter().collect())
        }),
    ]
}

proptest! {
    /// In UTC the next moment is the first minute that all fields allow.
    #[test]
    fn names_the_first_minute_that_fits(
        (minutes, hours, days, months, weekdays) in
            (field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6)),
        from in 1_700_000_000_i64..1_900_000_000,
    ) {
        let text = format!("{} {} {} {} {}", minutes.0, hours.0, days.0, months.0, weekdays.0);
        let schedule = Schedule::parse(&text).expect("a schedule");
        let free = days.0 == "*" || weekdays.0 == "*";
        let fits = |second: i64| {
            let local = jiff::tz::TimeZone::UTC.to_datetime(Timestamp::from_second(second).expect("a time"));
            let day = days.1.contains(&local.day());
            let weekday = weekdays.1.contains(&local.weekday().to_sunday_zero_offset());
            minutes.1.contains(&local.minute())
                && hours.1.contains(&local.hour())
                && months.1.contains(&local.month())
                && if free { day && weekday } else { day || weekday }
        };
        let next = schedule.next(Timestamp::from_second(from).expect("a time")).map(Timestamp::as_second);
        // A day at most, minute by minute; farther only what was found is looked at.
        let first = (from + 1..=from + 86_400).find(|second| second % 60 == 0 && fits(*second));
        match (first, next) {
            (Some(first), next) => prop_assert_eq!(next, Some(first), "{}", text),
            (None, Some(next)) => prop_assert!(next > from + 86_400 && next % 60 == 0 && fits(next), "{}", text),
            (None, None) => {}
        }
    }

    /// Whatever the zone: the next moment is later, and clocks show what was asked for.
    #[test]
    fn moves_on_in_every_zone(
        zone in prop::sample::select(vec!["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo",
            "Asia/Kathmandu", "Pacific/Apia", "Africa/Casablanca"]),
        (minutes, hours) in (field(0, 59), field(0, 23)),
        from in 1_000_000_000_i64..1_900_000_000,
    ) {
        let text = format!("{} {} * * *", minutes.0, hours.0);
        let schedule = Schedule::parse(&text).expect("a schedule").within(Zone::load(zone).expect("a zone"));
        let next = schedule.next(Timestamp::from_second(from).expect("a time")).expect("there is one").as_second();
        let local = schedule.zone.local(next).expect("a time");
        prop_assert!(next > from && next < from + 4 * 86_400, "{} in {}: {}", text, zone, next - from);
        prop_assert!(minutes.1.contains(&local.minute()) && hours.1.contains(&local.hour()) && local.second() == 0);
    }

    /// The last moment is where going from one to the next ends.
    #[test]
    fn finds_the_last_moment(
        (minutes, hours, days) in (field(0, 59), field(0, 23), field(1, 31)),
        every in prop::option::of(1..5000_i64),
        from in 1_700_000_000_i64..1_800_000_000,
        length in 0..200_000_i64,
    ) {
        let text = match every {
            Some(seconds) => format!("@every {seconds}s"),
            None => format!("{} {} {} * *", minutes.0, hours.0, days.0),
        };
        let schedule = Schedule::parse(&text).expect("a schedule");
        let [from, until] = [from, from + length].map(|second| Timestamp::from_second(second).expect("a time"));
        let mut last = None;
        while let Some(next) = schedule.next(last.unwrap_or(from)).filter(|next| *next <= until) {
            last = Some(next);
        }
        prop_assert_eq!(schedule.last(from, until), last, "{}", text);
    }

    /// Any text gives a schedule or an error.
    #[test]
    fn no_text_harms(text in "[*?/,0-9a-zA-Z@ =-]{0,20}") {
        if let Ok(schedule) = Schedule::parse(&text) {
            let now = at("2026-01-01T00:00:00Z");
            prop_assert!(schedule.next(now).is_none_or(|next| next > now));
        }
    }
}
