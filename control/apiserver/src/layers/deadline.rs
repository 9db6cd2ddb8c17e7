//! How long a request may take: a minute, a mutation of one object 34 seconds once its body is there, or what `?timeout=`
//! says if that is less. When time is up the work ends, not only the waiting.

use std::future::Future;
use std::time::Duration;

use coracle_api::meta::duration;
use coracle_api::status::Status;
use tokio::time::Instant;

/// The longest that a create, update, patch or delete may take (kubernetes-api §1.4).
const MUTATION: Duration = Duration::from_secs(34);

/// When a request must be answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    /// Its end.
    pub at: Instant,
}

impl Deadline {
    /// Of a request that began now. `asked` is its `timeout` parameter.
    pub fn new(asked: Option<&str>, longest: Duration) -> Result<Deadline, Status> {
        let asked = asked
            .filter(|text| !text.is_empty())
            .map(parse)
            .transpose()
            .map_err(|why| Status::bad_request(format!("invalid timeout specified in the request URL - {why}")))?;
        // Nothing or less means no wish of the client's.
        let longest = asked.flatten().map_or(longest, |asked| asked.min(longest));
        Ok(Deadline { at: Instant::now() + longest })
    }

    /// How much time is left.
    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Lets the `work` of a verb go on until time is up.
    pub async fn limit<T>(self, verb: &str, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        self.limit_to(mutation(verb), work).await
    }

    async fn limit_to<T>(
        self,
        mutation: Option<Duration>,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let mutation_ends = mutation.map(|longest| Instant::now() + longest).filter(|ends| *ends < self.at);
        let (until, message) = if let Some(mutation_ends) = mutation_ends {
            (mutation_ends, "request did not complete within requested timeout - context deadline exceeded")
        } else {
            (self.at, "request did not complete within the allotted timeout")
        };
        tokio::time::timeout_at(until, work).await.unwrap_or_else(|_| Err(Status::timeout(message, 0)))
    }
}

/// How long the change may take that a verb makes. Deleting what is selected is as many changes as there are objects
/// (kubernetes-api §8.2).
fn mutation(verb: &str) -> Option<Duration> {
    (!matches!(verb, "get" | "list" | "deletecollection")).then_some(MUTATION)
}

/// A duration as Go writes it (`1h2.5s`); `None` when it is not more than nothing.
fn parse(text: &str) -> Result<Option<Duration>, String> {
    let nanoseconds = u64::try_from(duration::parse(text)?).unwrap_or(0);
    Ok((nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        let seconds = |text: &str| parse(text).map(|found| found.map(|found| found.as_secs_f64()));
        for (text, expected) in [
            ("1s", Ok(Some(1.0))),
            ("1m30.5s", Ok(Some(90.5))),
            ("1ms", Ok(Some(0.001))),
            ("+2h", Ok(Some(7200.0))),
            ("0", Ok(None)),
            ("0s", Ok(None)),
            ("-5s", Ok(None)),
            ("abc", Err("time: invalid duration \"abc\"")),
            ("1", Err("time: missing unit in duration \"1\"")),
            ("1d", Err("time: unknown unit \"d\" in duration \"1d\"")),
            (".s", Err("time: invalid duration \".s\"")),
            ("9999999h", Err("time: invalid duration \"9999999h\"")),
        ] {
            assert_eq!(seconds(text).as_ref().map_err(String::as_str), expected.as_ref().map_err(|why| *why), "{text}");
        }
    }

    #[test]
    fn a_change_of_one_object_has_less_time_than_a_deletion_of_many() {
        for (verb, expected) in [
            ("get", None),
            ("list", None),
            ("deletecollection", None),
            ("create", Some(MUTATION)),
            ("patch", Some(MUTATION)),
            ("delete", Some(MUTATION)),
        ] {
            assert_eq!(mutation(verb), expected, "{verb}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_ends_at_the_shortest_of_its_limits() {
        for (asked, mutation, seconds, message) in [
            (None, None, 60, "Timeout: request did not complete within the allotted timeout"),
            (
                None,
                Some(34),
                34,
                "Timeout: request did not complete within requested timeout - context deadline exceeded",
            ),
            (Some("5s"), Some(34), 5, "Timeout: request did not complete within the allotted timeout"),
            (Some("90s"), None, 60, "Timeout: request did not complete within the allotted timeout"),
        ] {
            let deadline = Deadline::new(asked, Duration::from_secs(60)).unwrap();
            let begun = Instant::now();
            let mutation = mutation.map(Duration::from_secs);
            let failed = deadline.limit_to::<()>(mutation, std::future::pending()).await.unwrap_err();
            assert_eq!((failed.code(), failed.message.as_str()), (504, message));
            assert_eq!(begun.elapsed().as_secs(), seconds);
        }
        assert_eq!(Deadline::new(Some("abc"), Duration::from_secs(60)).unwrap_err().code(), 400);
    }
}
