//! Answers while clients read them. Who asks for much and does not read holds memory: it is bounded in bytes ([`account`])
//! and in time.
//!
//! At a bound the answer that has not gone on for longest, of the caller who has most, is given up; who reads is never cut
//! off for others: when nobody stands still the newcomer is told to come again, unless it is told what was done. The
//! cluster's duties have bytes of their own, and those in this process, which read at once, are not counted.
//!
//! [`account`]: super::account

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use coracle_api::status::Status;
use http_body::{Frame, SizeHint};

use super::account::{Account, COUNTED, Sent};
use super::slot::Slot;
use crate::answer::pieces::Holds;
use crate::limits::{Class, Connection, Flow};

/// What an answer without a length is taken to hold.
const UNKNOWN: usize = 128 << 10;

/// The answers that are being sent.
pub(crate) struct Answers {
    users: Arc<Account>,
    duties: Arc<Account>,
}

impl Default for Answers {
    fn default() -> Answers {
        Answers { users: Account::new(), duties: Account::new() }
    }
}

impl Answers {
    /// Where the bytes of a flow are counted, if they are.
    pub fn account(&self, flow: Flow<'_>) -> Option<&Arc<Account>> {
        match flow.class {
            Class::Own => None,
            Class::Duty => Some(&self.duties),
            Class::User => Some(&self.users),
        }
    }

    /// The same answer, counted for `flow` while it is sent over `connection`, and let go of when it was not read after
    /// `longest`. The answer to what was `done` already is counted, and never refused.
    pub fn hold(
        &self,
        flow: Flow<'_>,
        connection: Option<Connection>,
        response: Response,
        longest: Duration,
        done: bool,
    ) -> Result<Response, Status> {
        use http_body::Body as _;
        let Some(account) = self.account(flow) else { return Ok(response) };
        let hint = response.body().size_hint();
        let exact = hint.exact().map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        if exact.is_some_and(|size| size < COUNTED) {
            return Ok(response);
        }
        let holds = response.extensions().get::<Holds>().map(|holds| holds.0);
        let bytes = holds.or(exact).unwrap_or(UNKNOWN);
        // What is known to be sent is not held any more.
        let shrinks = holds.is_none() && exact.is_some();
        let (parts, body) = response.into_parts();
        let slot = Arc::new(Slot::new(body, connection));
        let sent = match account.open(flow.name, bytes, shrinks, &slot) {
            Some(sent) => sent,
            None if done => account.open_anyway(flow.name, bytes, shrinks, &slot),
            None => return Err(Status::too_many_requests("too many bytes in answers, please try again later", 1)),
        };
        let weak = Arc::downgrade(&slot);
        let watchdog = tokio::spawn(async move {
            tokio::time::sleep(longest).await;
            if let Some(slot) = weak.upgrade() {
                slot.give_up();
            }
        });
        let body = Counted { slot, hint, sent, watchdog };
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}

/// A body that is counted while it is sent.
struct Counted {
    slot: Arc<Slot>,
    /// What is left.
    hint: SizeHint,
    sent: Sent,
    watchdog: tokio::task::JoinHandle<()>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = match self.slot.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            other => return other,
        };
        let size = frame.data_ref().map_or(0, Bytes::len) as u64;
        if let Some(left) = self.hint.exact() {
            self.hint = SizeHint::with_exact(left.saturating_sub(size));
        }
        Poll::Ready(Some(Ok(frame.map_data(|piece| self.sent.give(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.hint.exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.watchdog.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::pieces::in_pieces;
    use crate::layers::account::BYTES_MAX;
    use http_body::Body as _;
    use http_body_util::BodyExt;

    const MINUTE: Duration = Duration::from_secs(60);

    fn answer(size: usize) -> Response {
        in_pieces(Response::new(Body::from(vec![b'x'; size])))
    }

    fn user(name: &str) -> Flow<'_> {
        Flow { class: Class::User, name }
    }

    impl Answers {
        fn with(still: Duration) -> Answers {
            Answers { users: Account::with(still), duties: Account::with(still) }
        }

        fn take(&self, name: &str, size: usize) -> Result<Body, Status> {
            self.hold(user(name), None, answer(size), MINUTE, false).map(Response::into_body)
        }
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_push_out_each_other_and_nobody_else() {
        // Who took nothing for so long stands still.
        let answers = Answers::with(MINUTE);
        let size = BYTES_MAX / 16;
        let mut other = answers.take("other", size).unwrap();
        let mut idle: Vec<Body> = (0..6).map(|_| answers.take("a", size).unwrap()).collect();
        let mut reads = answers.take("a", size).unwrap();
        assert_eq!(answers.take("a", size).unwrap_err().code(), 429, "nobody stands still yet");
        let done = answers.hold(user("a"), None, answer(size), MINUTE, true).unwrap().into_body();
        assert_eq!(done.collect().await.unwrap().to_bytes().len(), size, "what was done is said");
        let duty = Flow { class: Class::Duty, name: "system:node:n" };
        assert!(answers.hold(duty, None, answer(BYTES_MAX / 2), MINUTE, false).is_ok(), "duties have their own");
        answers.users.age(MINUTE + Duration::from_secs(1));
        // More than has to be taken in that time.
        for _ in 0..64 {
            assert!(reads.frame().await.unwrap().is_ok());
        }
        assert!(other.frame().await.unwrap().is_ok());
        let mut newest = answers.take("a", size).unwrap();
        assert!(idle[0].frame().await.unwrap().is_err(), "it stood still for longest");
        for goes_on in [&mut reads, &mut other, &mut newest, &mut idle[1]] {
            while let Some(frame) = goes_on.frame().await {
                assert!(frame.is_ok());
            }
        }
        drop((reads, other, newest, idle));
        assert_eq!(answers.users.bytes(), 0);
    }

    #[tokio::test]
    async fn what_a_connection_holds_is_counted_until_the_connection_is_cut() {
        let answers = Answers::with(Duration::ZERO);
        let connection = Connection::default();
        let hold = |response| answers.hold(user("a"), Some(connection.clone()), response, MINUTE, false);
        let mut body = hold(answer(BYTES_MAX / 2)).unwrap().into_body();
        // What HTTP/2 does where a client's window is closed: it takes a piece, and keeps it.
        let stashed = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(answers.users.bytes(), BYTES_MAX / 2);
        assert!(answers.take("b", BYTES_MAX / 2).is_ok(), "it made room");
        assert!(body.frame().await.unwrap().is_err());
        tokio::time::timeout(MINUTE, connection.is_cut()).await.expect("nothing less frees what it holds");
        drop((body, stashed));
        assert_eq!(answers.users.bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_is_let_go_of() {
        let held = Arc::new(());
        let holds = held.clone();
        let endless = futures::stream::repeat_with(move || {
            let _ = &holds;
            Ok::<_, std::convert::Infallible>(Bytes::from_static(b"x"))
        });
        let answers = Answers::default();
        let response = Response::new(Body::from_stream(endless));
        let longest = Duration::from_secs(20);
        let mut body = answers.hold(user("a"), None, response, longest, false).unwrap().into_body();
        assert!(body.frame().await.unwrap().is_ok());
        tokio::time::sleep(longest - Duration::from_secs(1)).await;
        assert!(body.frame().await.unwrap().is_ok());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(body.frame().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn one_answer_may_be_larger_than_all_that_a_caller_may_have() {
        let answers = Answers::default();
        let size = BYTES_MAX / 2 + 1;
        let body = answers.take("a", size).unwrap();
        assert_eq!(body.size_hint().exact(), Some(size as u64));
        let read = body.collect().await.unwrap().to_bytes();
        assert_eq!(read.len(), size);
    }
}
