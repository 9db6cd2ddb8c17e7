//! What a process has used, as Linux counts it: it does not depend on what else the machine does, unlike time.

use std::ops::{AddAssign, Sub};
use std::time::Duration;

use super::Error;

/// What a process has used so far, or in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// On the CPU, in the program and in the kernel; counted in hundredths of a second.
    pub cpu: Duration,
    /// How often one of its threads has waited for something: each time another program has to be run, and this one woken.
    pub waits: u64,
}

impl Cost {
    /// Of a process, with its threads that have not ended.
    pub fn of(process: u32) -> Result<Cost, Error> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let ticks = ticks(&stat).ok_or("stat has not what it should have")?;
        let cpu = Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
        let mut waits = 0;
        for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
            // It may have ended by now.
            let Ok(status) = std::fs::read_to_string(thread?.path().join("status")) else { continue };
            waits += waited(&status).ok_or("status has not what it should have")?;
        }
        Ok(Cost { cpu, waits })
    }
}

/// User and system time. The name before it may have blanks and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn waited(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
}

impl Sub for Cost {
    type Output = Cost;

    fn sub(self, before: Cost) -> Cost {
        Cost { cpu: self.cpu.saturating_sub(before.cpu), waits: self.waits.saturating_sub(before.waits) }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, more: Cost) {
        self.cpu += more.cpu;
        self.waits += more.waits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_has_used_what_it_worked() {
        let process = std::process::id();
        let before = Cost::of(process).unwrap();
        let begun = std::time::Instant::now();
        while (Cost::of(process).unwrap() - before).cpu < Duration::from_millis(50) {
            assert!(begun.elapsed() < Duration::from_secs(60), "it works all the time");
        }
        std::thread::sleep(Duration::from_millis(1));
        assert!((Cost::of(process).unwrap() - before).waits > 0, "it has slept");
    }

    #[test]
    fn a_name_may_look_like_the_end_of_a_name() {
        assert_eq!(ticks("7 (a) b) 1) S 1 7 7 0 -1 4194560 99 0 0 0 12 30 0 0 20 0 4 0 1"), Some(42));
        assert_eq!(ticks("7 (a) S 1"), None);
        assert_eq!(waited("Name:\ta\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t6\n"), Some(5));
    }
}
