//! What a person reads: progress on standard error, results on standard output.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use coracle_sdk::AskError;
use indicatif::{ProgressBar, ProgressStyle};

/// Prints a line of the result; false when who reads has seen enough, as `head` has, which is no fault: what was begun goes on. A line may be
/// what others have written, in whatever bytes.
pub fn line(line: impl AsRef<[u8]>) -> anyhow::Result<bool> {
    line_to(&mut std::io::stdout().lock(), line.as_ref())
}

fn line_to(out: &mut impl Write, line: &[u8]) -> anyhow::Result<bool> {
    let written = out.write_all(&[line, b"\n"].concat()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("print a line"),
    }
}

/// [`line()`] of a format, for who has nothing left to do when nobody reads.
macro_rules! say {
    ($($format:tt)*) => { $crate::output::line(format!($($format)*)).map(drop) };
}
pub(crate) use say;

/// Says something on standard error. That its reader has gone or its disk is full ends nothing, which [`eprintln!`] would: it panics.
macro_rules! tell {
    ($($format:tt)*) => { $crate::output::told(format!($($format)*)) };
}
pub(crate) use tell;

/// [`tell!`] of a line.
pub fn told(line: String) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The error and its causes, in one line; a cause that repeats its effect is left out. What a library says for programmers is
/// told in words for people.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let asked = cause.downcast_ref::<coracle_sdk::kube::Error>().map(AskError::from);
        let part = plain(asked.as_ref().map_or_else(|| cause.to_string(), ToString::to_string));
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        if asked.is_some() {
            break;
        }
    }
    text
}

/// The line that says where Ingresses are served, if they are.
pub fn ingress(out: &mut impl std::io::Write, urls: &[String]) -> std::io::Result<()> {
    if urls.is_empty() { Ok(()) } else { writeln!(out, "ingress    {}", urls.join(" ")) }
}

/// The line that says where questions about names are answered, if they are.
pub fn names(out: &mut impl std::io::Write, at: Option<std::net::SocketAddr>) -> std::io::Result<()> {
    at.map_or(Ok(()), |at| writeln!(out, "dns        {at}"))
}

/// Whether the error is that no cluster answers.
pub fn is_unreachable(error: &anyhow::Error) -> bool {
    error.chain().any(coracle_sdk::is_unreachable)
}

/// Without the numbers of the system's errors, which their words say already.
fn plain(mut text: String) -> String {
    const NUMBER: &str = " (os error ";
    while let Some(start) = text.find(NUMBER) {
        let after = start + NUMBER.len();
        let Some(length) = text[after..].find(')') else { break };
        text.replace_range(start..=after + length, "");
    }
    text
}

/// One step of a longer work: a spinner while it lasts, a line with its time when it is done.
pub struct Step {
    bar: ProgressBar,
    what: String,
    begun: Instant,
}

impl Step {
    /// Begins a step.
    pub fn begin(what: impl Into<String>) -> Step {
        let what = what.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("a constant template"));
            bar.enable_steady_tick(Duration::from_millis(80));
            bar
        } else {
            ProgressBar::hidden()
        };
        bar.set_message(what.clone());
        Step { bar, what, begun: Instant::now() }
    }

    /// Says more of the step at hand.
    pub fn detail(&self, detail: &str) {
        self.bar.set_message(format!("{}: {detail}", self.what));
    }

    /// Says what the step waits for: beside the spinner, or where there is none in a line of its own.
    pub fn waits_for(&self, why: &str) {
        match self.bar.is_hidden() {
            true => tell!("{}: {why}", self.what),
            false => self.detail(why),
        }
    }

    /// Says something to who has to do with it, while the step lasts.
    pub fn note(&self, line: &str) {
        self.bar.suspend(|| tell!("{line}"));
    }

    /// Prints a line of the result while the step lasts.
    pub fn print(&self, text: &str) -> anyhow::Result<()> {
        self.bar.suspend(|| line(text)).map(drop)
    }

    /// Ends the step well.
    pub fn done(self) {
        self.bar.finish_and_clear();
        let elapsed = self.begun.elapsed();
        let time = if elapsed < Duration::from_secs(1) {
            format!("{} ms", elapsed.as_millis())
        } else {
            format!("{:.1} s", elapsed.as_secs_f64())
        };
        tell!("✓ {} ({time})", self.what);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Bytes as a person reads them.
pub fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{:.1} KiB", count as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", count as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", count as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails as a pipe without a reader, or as a full disk does.
    struct Fails(ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_has_read_enough_is_no_fault_and_a_full_disk_is_one() {
        let mut out = Vec::new();
        assert!(line_to(&mut out, b"a\xffb").unwrap());
        assert_eq!(out, b"a\xffb\n");
        assert!(!line_to(&mut Fails(ErrorKind::BrokenPipe), b"a").unwrap());
        assert!(line_to(&mut Fails(ErrorKind::StorageFull), b"a").is_err());
    }

    #[test]
    fn a_chain_says_each_cause_once() {
        let error = anyhow::anyhow!("no such file").context("read x: no such file").context("start");
        assert_eq!(chain(&error), "start: read x: no such file");
    }

    #[test]
    fn what_libraries_say_is_told_in_words_for_people() {
        use coracle_sdk::kube::{self, core::Status};
        let status = Status::failure("pods \"p\" is forbidden", "Forbidden").with_code(403);
        let refused = anyhow::Error::from(kube::Error::Api(Box::new(status))).context("list the pods");
        assert_eq!(chain(&refused), "list the pods: pods \"p\" is forbidden (HTTP status 403)");
        assert!(!is_unreachable(&refused));
        let dead = kube::Error::Service(Box::new(std::io::Error::from_raw_os_error(111)));
        let dead = anyhow::Error::from(dead).context("push the component");
        assert!(chain(&dead).starts_with("push the component: the cluster does not answer (Connection refused)"));
        assert!(is_unreachable(&dead));
        assert!(is_unreachable(&anyhow::Error::from(coracle_sdk::BackupError::from(AskError::from(dead_link())))));
        let taken = anyhow::Error::from(std::io::Error::from_raw_os_error(98)).context("listen on 127.0.0.1:1");
        assert_eq!(chain(&taken), "listen on 127.0.0.1:1: Address already in use");
    }

    fn dead_link() -> coracle_sdk::kube::Error {
        coracle_sdk::kube::Error::Service(Box::new(std::io::Error::from_raw_os_error(111)))
    }

    #[test]
    fn bytes_have_units() {
        for (count, text) in [(12, "12 B"), (2048, "2.0 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(bytes(count), text);
        }
    }
}
