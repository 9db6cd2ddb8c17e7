//! Arguments of the audit log: kube-apiserver's.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args};
use coracle_sdk::{Audit, Log, Mode, Sending, Throttle, Truncate, Webhook};

use crate::cluster::usage;

/// The audit log, by kube-apiserver's arguments.
#[derive(Args, Clone)]
#[command(group(ArgGroup::new("audit_backend").args(["audit_log_path", "audit_webhook_config_file"]).multiple(true)))]
pub struct AuditLog {
    /// Tell of requests as this Policy of audit.k8s.io/v1 says (YAML or JSON), in a log, to a webhook or both
    #[arg(long, value_name = "FILE", requires = "audit_backend")]
    audit_policy_file: Option<PathBuf>,
    /// Write what is told to this file, a line of JSON each; - is standard output
    #[arg(long, value_name = "FILE|-", requires = "audit_policy_file")]
    audit_log_path: Option<PathBuf>,
    /// Days that a full file is kept; 0 is for ever
    #[arg(long, value_name = "DAYS", default_value_t = 0, requires = "audit_log_path")]
    audit_log_maxage: u64,
    /// Full files that are kept; 0 is all
    #[arg(long, value_name = "COUNT", default_value_t = 0, requires = "audit_log_path")]
    audit_log_maxbackup: usize,
    /// Megabytes of a file, beyond which the next is begun
    #[arg(long, value_name = "MEGABYTES", default_value_t = 100, requires = "audit_log_path",
        value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    audit_log_maxsize: u64,
    #[command(flatten)]
    webhook: AuditWebhook,
}

/// Its webhook.
#[derive(Args, Clone)]
pub struct AuditWebhook {
    /// Send what is told to the server of this kubeconfig's current context
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    audit_webhook_config_file: Option<PathBuf>,
    /// Who waits for that server: nobody (batch), requests until it has heard of them (blocking); with blocking-strict those are
    /// refused whose first event is lost
    #[arg(long, value_name = "MODE", default_value = "batch", requires = "audit_webhook_config_file",
        value_parser = PossibleValuesParser::new(["batch", "blocking", "blocking-strict"]))]
    audit_webhook_mode: String,
    /// Events that wait to be sent (batch)
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, requires = "audit_webhook_config_file",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    audit_webhook_batch_buffer_size: u32,
    /// Events that are sent together (batch)
    #[arg(long, value_name = "COUNT", default_value_t = 400, requires = "audit_webhook_config_file",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    audit_webhook_batch_max_size: u32,
    /// How long those wait for more (batch)
    #[arg(long, value_name = "TIME", default_value = "30s", requires = "audit_webhook_config_file", value_parser = time)]
    audit_webhook_batch_max_wait: Duration,
    /// Whether only so many batches are sent a second
    #[arg(long, value_name = "true|false", default_value_t = true, requires = "audit_webhook_config_file",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    audit_webhook_batch_throttle_enable: bool,
    /// Batches a second, on average
    #[arg(long, value_name = "NUMBER", default_value_t = 10.0, requires = "audit_webhook_config_file", value_parser = rate)]
    audit_webhook_batch_throttle_qps: f32,
    /// Batches at once, after a time without any
    #[arg(long, value_name = "COUNT", default_value_t = 15, requires = "audit_webhook_config_file",
        value_parser = clap::value_parser!(u32).range(1..))]
    audit_webhook_batch_throttle_burst: u32,
    /// How long after a failure the same is sent again; each further time half as long again, five times in all
    #[arg(long, value_name = "TIME", default_value = "10s", requires = "audit_webhook_config_file", value_parser = time)]
    audit_webhook_initial_backoff: Duration,
    /// Whether events and batches are bounded by what follows
    #[arg(long, value_name = "true|false", default_value_t = false, requires = "audit_webhook_config_file",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    audit_webhook_truncate_enabled: bool,
    /// Bytes of a batch
    #[arg(long, value_name = "BYTES", default_value_t = 10 << 20, requires = "audit_webhook_config_file",
        value_parser = clap::value_parser!(u32).range(1..))]
    audit_webhook_truncate_max_batch_size: u32,
    /// Bytes of an event; a larger one is sent without the bodies that it tells of, or is lost
    #[arg(long, value_name = "BYTES", default_value_t = 100 << 10, requires = "audit_webhook_config_file",
        value_parser = clap::value_parser!(u32).range(1..))]
    audit_webhook_truncate_max_event_size: u32,
    /// Version of what is sent
    #[arg(long, value_name = "VERSION", default_value = "audit.k8s.io/v1", requires = "audit_webhook_config_file",
        value_parser = PossibleValuesParser::new(["audit.k8s.io/v1"]))]
    audit_webhook_version: String,
}

impl AuditLog {
    /// Whether it goes to standard output.
    pub fn is_standard_output(&self) -> bool {
        self.audit_log_path.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }

    /// What it says, if there is one.
    ///
    /// # Errors
    /// One argument excludes another.
    pub fn audit(self) -> anyhow::Result<Option<Audit>> {
        let is_standard_output = self.is_standard_output();
        let log = self.audit_log_path.map(|path| Log {
            path: (!is_standard_output).then_some(path),
            max_age: self.audit_log_maxage,
            max_backup: self.audit_log_maxbackup,
            max_size: self.audit_log_maxsize,
        });
        let webhook = self.webhook.webhook()?;
        Ok(self.audit_policy_file.map(|policy| Audit { policy, log, webhook }))
    }
}

impl AuditWebhook {
    fn webhook(self) -> anyhow::Result<Option<Webhook>> {
        let Some(config) = self.audit_webhook_config_file else { return Ok(None) };
        let (event, batch) = (self.audit_webhook_truncate_max_event_size, self.audit_webhook_truncate_max_batch_size);
        if batch < event {
            return Err(usage(format!(
                "--audit-webhook-truncate-max-batch-size ({batch}) must not be less than \
                 --audit-webhook-truncate-max-event-size ({event})"
            )));
        }
        let throttle =
            Throttle { qps: self.audit_webhook_batch_throttle_qps, burst: self.audit_webhook_batch_throttle_burst };
        let truncate = Truncate { max_batch_size: batch as usize, max_event_size: event as usize };
        let sending = Sending {
            mode: match self.audit_webhook_mode.as_str() {
                "blocking" => Mode::Blocking,
                "blocking-strict" => Mode::BlockingStrict,
                _ => Mode::Batch,
            },
            batch_buffer_size: self.audit_webhook_batch_buffer_size as usize,
            batch_max_size: self.audit_webhook_batch_max_size as usize,
            batch_max_wait: self.audit_webhook_batch_max_wait,
            batch_throttle: self.audit_webhook_batch_throttle_enable.then_some(throttle),
            initial_backoff: self.audit_webhook_initial_backoff,
            truncate: self.audit_webhook_truncate_enabled.then_some(truncate),
        };
        Ok(Some(Webhook { config, sending }))
    }
}

/// Longest of these times.
const TIME_MAX: Duration = Duration::from_secs(3600);

/// A number and a unit: ms, s or m.
fn time(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is no time from 0s to 1h, as 500ms, 30s or 2m");
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(refuse()),
    };
    let number: f64 = number.parse().map_err(|_| refuse())?;
    let time = Duration::try_from_secs_f64(number * seconds).ok();
    time.filter(|time| *time <= TIME_MAX).ok_or_else(refuse)
}

fn rate(text: &str) -> Result<f32, String> {
    let rate = text.parse::<f32>().ok().filter(|rate| (0.001..=1e6).contains(rate));
    rate.ok_or_else(|| format!("{text:?} is no number from 0.001 to a million"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        audit: AuditLog,
    }

    fn read(words: &str) -> Result<Option<Audit>, String> {
        let line = Line::try_parse_from(std::iter::once("x").chain(words.split_whitespace()));
        line.map_err(|error| error.to_string())?.audit.audit().map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_mean_what_they_mean_to_kube_apiserver() {
        assert_eq!(read("").unwrap(), None);
        let log = read("--audit-policy-file p --audit-log-path -").unwrap().unwrap();
        assert_eq!((log.log, log.webhook), (Some(Log::default()), None));
        let both = read("--audit-policy-file p --audit-log-path l --audit-webhook-config-file w").unwrap().unwrap();
        assert!(both.log.is_some());
        assert_eq!(both.webhook, Some(Webhook { config: "w".into(), sending: Sending::default() }));
        let said = read(
            "--audit-policy-file p --audit-webhook-config-file w --audit-webhook-mode blocking-strict \
             --audit-webhook-batch-buffer-size 1 --audit-webhook-batch-max-size 2 --audit-webhook-batch-max-wait 1.5s \
             --audit-webhook-batch-throttle-enable=false --audit-webhook-initial-backoff 500ms \
             --audit-webhook-truncate-enabled --audit-webhook-truncate-max-event-size 7 \
             --audit-webhook-truncate-max-batch-size 8",
        );
        let said = said.unwrap().unwrap();
        assert_eq!(said.log, None);
        let sending = Sending {
            mode: Mode::BlockingStrict,
            batch_buffer_size: 1,
            batch_max_size: 2,
            batch_max_wait: Duration::from_millis(1_500),
            batch_throttle: None,
            initial_backoff: Duration::from_millis(500),
            truncate: Some(Truncate { max_batch_size: 8, max_event_size: 7 }),
        };
        assert_eq!(said.webhook.unwrap().sending, sending);
        let slow = "--audit-policy-file p --audit-webhook-config-file w --audit-webhook-batch-throttle-qps 0.5 \
             --audit-webhook-batch-throttle-burst 1";
        let throttle = read(slow).unwrap().unwrap().webhook.unwrap().sending.batch_throttle;
        assert_eq!(throttle, Some(Throttle { qps: 0.5, burst: 1 }));
    }

    #[test]
    fn arguments_that_mean_nothing_are_refused() {
        let webhook = "--audit-policy-file p --audit-webhook-config-file w";
        for (words, why) in [
            ("--audit-policy-file p".to_owned(), "--audit-log-path"),
            ("--audit-log-path l".to_owned(), "--audit-policy-file"),
            ("--audit-webhook-config-file w".to_owned(), "--audit-policy-file"),
            (
                "--audit-policy-file p --audit-log-path l --audit-webhook-mode batch".to_owned(),
                "--audit-webhook-config-file",
            ),
            (format!("{webhook} --audit-log-maxage 1"), "--audit-log-path"),
            (format!("{webhook} --audit-webhook-mode never"), "blocking-strict"),
            (format!("{webhook} --audit-webhook-batch-max-size 0"), "0 is not in"),
            (format!("{webhook} --audit-webhook-batch-throttle-qps 0"), "is no number"),
            (format!("{webhook} --audit-webhook-batch-max-wait 2"), "is no time"),
            (format!("{webhook} --audit-webhook-truncate-max-batch-size 1"), "must not be less"),
        ] {
            let refused = read(&words).unwrap_err();
            assert!(refused.contains(why), "{words}: {refused}");
        }
    }
}
