//! The program that this process runs, and how the process begins anew with another one.
//!
//! A program's file can be replaced under a process, which goes on with the old one. Whoever may asks it to begin anew: it ends in
//! order, as at its end, and runs what is at its path then, as the same process. So no supervisor has to take part, and the API's port
//! is open all the time. What is there is asked first who it is: a file that does not run here ends nobody.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /coracle/v1/program` | [`Running`] |
//! | `POST /coracle/v1/program` `{"process": …}` | 202, and it begins anew, if it is that process still; 409 with the reason, if it does not; 423, if it does not now |
//!
//! Who may ask is the caller's to say: administrators, by way of any server (`members`) and of the node's endpoint. A server asks the
//! leader whether the others can do without it ([`Keyspace::begin_anew`]), whoever asks it and by whichever way: one server at a time is
//! away, and only while all others are there. Its new program has to know the format in which the log is written.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use coracle_keyspace::{Formats, GroupError, Keyspace};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::join::status;

/// Where it is asked for.
pub(crate) const PATH: &str = "/coracle/v1/program";
/// How long a program may take to say who it is; it reads nothing but itself.
const SAY_MAX: Duration = Duration::from_secs(20);
/// Bytes that it may say.
const SAY_BYTES_MAX: u64 = 4 << 10;
/// How long after it could not say that it is back a server says so again.
const AGAIN: Duration = Duration::from_secs(2);

/// The program of this process, which can begin anew; clones are the same.
#[derive(Clone)]
pub struct Program(Arc<Shared>);

struct Shared {
    path: PathBuf,
    process: String,
    asked: CancellationToken,
    /// Held while it is asked whether the process may begin anew, and while a server says that it is back.
    beginning: tokio::sync::Mutex<()>,
    /// The server in this process, where there is one.
    server: OnceLock<Keyspace>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("path", &self.0.path).field("process", &self.0.process).finish_non_exhaustive()
    }
}

/// Why a process does not begin anew.
#[derive(Debug, thiserror::Error)]
enum NotAnew {
    /// Never as things are.
    #[error("{0}")]
    Unfit(String),
    /// Not at this moment.
    #[error("not now: {0}")]
    NotNow(#[from] GroupError),
}

/// What a process runs, and what it would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// The version that runs.
    pub version: String,
    /// Tells this life of the process from every other one.
    pub process: String,
    /// Where its program is.
    pub path: PathBuf,
    /// What is there now, where it is another file than the one that runs.
    #[serde(default)]
    pub next: Option<Next>,
}

/// A program that could be begun with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Next {
    /// One that runs here.
    Fit(Version),
    /// One that does not, and why.
    Unfit(String),
}

/// What a program says of itself: `coracle version -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its version.
    pub version: String,
    /// Which formats of the log it knows.
    pub formats: Formats,
}

impl Version {
    /// That of this build.
    pub fn own() -> Version {
        Version { version: env!("CARGO_PKG_VERSION").to_owned(), formats: Formats::OWN }
    }
}

impl Program {
    /// The program at `path`, which this process runs.
    pub fn new(path: PathBuf) -> Program {
        // The number of a process that begins anew stays.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let process = format!("{}-{}", std::process::id(), now.as_nanos());
        let (asked, server) = (CancellationToken::new(), OnceLock::new());
        Program(Arc::new(Shared { path, process, asked, beginning: tokio::sync::Mutex::default(), server }))
    }

    /// Has the process begin anew only when the other servers can do without this one.
    pub(crate) fn serves(&self, keyspace: Keyspace) {
        // One process has one server.
        let _ = self.0.server.set(keyspace);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Waits until somebody has asked that the process begins anew.
    pub async fn asked(&self) {
        self.0.asked.cancelled().await;
    }

    /// What runs, and what would.
    pub async fn look(&self) -> Running {
        let path = self.0.path.clone();
        let looked = tokio::task::spawn_blocking(move || runs(&path)).await.map_err(io::Error::other);
        let next = match looked.and_then(|looked| looked) {
            Ok(true) => None,
            Ok(false) => Some(next(&self.0.path).await),
            Err(error) => Some(Next::Unfit(error.to_string())),
        };
        Running {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: self.0.process.clone(),
            path: self.0.path.clone(),
            next,
        }
    }

    /// Has the process begin anew, if it can; what it runs. Asked twice, it begins anew once.
    async fn begin(&self) -> Result<Running, NotAnew> {
        let running = self.look().await;
        let _one = self.0.beginning.lock().await;
        if self.0.asked.is_cancelled() {
            return Ok(running);
        }
        let formats = match &running.next {
            Some(Next::Unfit(why)) => return Err(NotAnew::Unfit(why.clone())),
            Some(Next::Fit(version)) => version.formats,
            None => Formats::OWN,
        };
        if let Some(keyspace) = self.0.server.get() {
            let format = keyspace.format().ok_or_else(|| NotAnew::Unfit("the log's format cannot be read".into()))?;
            if !(formats.oldest..=formats.newest).contains(&format) {
                let path = running.path.display();
                let why = format!("the log is in format {format}, and what is at {path} knows {formats}");
                return Err(NotAnew::Unfit(why));
            }
            keyspace.begin_anew(formats).await?;
        }
        tracing::info!(path = %running.path.display(), "asked to begin anew");
        self.0.asked.cancel();
        Ok(running)
    }

    /// Says that the server is there; never, where it is about to go.
    async fn is_back(&self, keyspace: &Keyspace) -> Result<(), GroupError> {
        let one = self.0.beginning.lock().await;
        if !self.0.asked.is_cancelled() {
            return keyspace.is_back().await;
        }
        // Whoever asks again is answered until the process ends.
        drop(one);
        std::future::pending().await
    }

    /// The routes; the caller puts authentication before them.
    pub fn router(&self) -> Router {
        Router::new().route(PATH, get(look).post(begin)).with_state(self.clone())
    }
}

/// Whether the file at `path` is the one that this process runs. A file that is written over is refused by the system while it runs;
/// one that was replaced has another number.
fn runs(path: &Path) -> io::Result<bool> {
    let (mine, there) = (std::fs::metadata("/proc/self/exe")?, std::fs::metadata(path)?);
    Ok((mine.dev(), mine.ino()) == (there.dev(), there.ino()))
}

/// Asks the program at `path` who it is.
async fn next(path: &Path) -> Next {
    let unfit = |why: String| Next::Unfit(format!("{} does not say who it is: {why}", path.display()));
    let said = tokio::time::timeout(SAY_MAX, say(path)).await;
    match said.unwrap_or_else(|_| Err(format!("it took longer than {} s", SAY_MAX.as_secs()))) {
        Ok(version) => Next::Fit(version),
        Err(why) => unfit(why),
    }
}

async fn say(path: &Path) -> Result<Version, String> {
    let mut command = Command::new(path);
    command.args(["version", "-o", "json"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().map_err(|error| error.to_string())?;
    let output = child.stdout.take().ok_or("it has no output")?;
    let mut said = Vec::new();
    output.take(SAY_BYTES_MAX).read_to_end(&mut said).await.map_err(|error| error.to_string())?;
    // Who says more than that waits for nobody to read it.
    let version = serde_json::from_slice(&said).map_err(|error| format!("its answer is {error}"))?;
    let status = child.wait().await.map_err(|error| error.to_string())?;
    if status.success() { Ok(version) } else { Err(status.to_string()) }
}

async fn look(State(program): State<Program>) -> Json<Running> {
    Json(program.look().await)
}

#[derive(Deserialize)]
struct Begin {
    process: String,
}

async fn begin(State(program): State<Program>, Json(Begin { process }): Json<Begin>) -> Response {
    // Whoever asks twice, because it heard no answer, asks for it once.
    if process != program.0.process {
        return status(StatusCode::CONFLICT, "it is another process by now");
    }
    // It goes on when whoever asked goes away: the others know that it is to begin anew.
    let begun = tokio::spawn(async move { program.begin().await });
    match begun.await {
        Ok(Ok(running)) => (StatusCode::ACCEPTED, Json(running)).into_response(),
        Ok(Err(error @ NotAnew::Unfit(_))) => status(StatusCode::CONFLICT, &error.to_string()),
        Ok(Err(error @ NotAnew::NotNow(_))) => status(StatusCode::LOCKED, &error.to_string()),
        Err(error) => status(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Says that this server is there, whenever the others take it for one that begins anew and it does not, until `stop`: after it has
/// begun, and where it was let and did not hear of it.
pub(crate) async fn is_back(keyspace: Keyspace, program: Option<Program>, stop: CancellationToken) {
    let work = async {
        let mut is_told = false;
        loop {
            keyspace.was_let_begin_anew().await;
            let told = match &program {
                Some(program) => program.is_back(&keyspace).await,
                None => keyspace.is_back().await,
            };
            match told {
                Ok(()) => is_told = false,
                Err(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(%error, "say that this server is back; it is tried again");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    };
    // Its next life says it.
    tokio::select! {
        () = work => (),
        () = stop.cancelled() => (),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn post(program: &Program, process: &str) -> (StatusCode, String) {
        let body = serde_json::json!({"process": process}).to_string();
        let request = Request::post(PATH).header("content-type", "application/json").body(Body::from(body)).unwrap();
        let answer = program.router().oneshot(request).await.unwrap();
        let (head, body) = answer.into_parts();
        (head.status, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn what_is_at_the_path_is_asked_who_it_is_before_anything_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coracle");
        let program = Program::new(path.clone());
        let process = program.look().await.process;
        for (text, part) in [
            (None, "No such file"),
            (Some("#!/bin/sh\nexit 1\n"), "does not say who it is"),
            (Some("#!/bin/sh\necho coracle 7\n"), "does not say who it is"),
            (Some("#!/bin/sh\nyes\n"), "does not say who it is"),
            (
                Some("#!/bin/sh\necho '{\"version\": \"7\", \"formats\": {\"oldest\": 2, \"newest\": 3}}'; exit 1\n"),
                "exit status: 1",
            ),
        ] {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            let (code, why) = post(&program, &process).await;
            assert!(code == StatusCode::CONFLICT && why.contains(part), "{text:?}: {code} {why}");
        }
        let fit = "#!/bin/sh\n[ \"$*\" = 'version -o json' ] && echo '{\"version\": \"7\", \"formats\": {\"oldest\": 2, \"newest\": 3}}'\n";
        std::fs::write(&path, fit).unwrap();
        let next = Next::Fit(Version { version: "7".into(), formats: Formats { oldest: 2, newest: 3 } });
        assert_eq!(program.look().await.next, Some(next));
        assert_eq!(post(&program, "another").await.0, StatusCode::CONFLICT);
        assert!(!program.0.asked.is_cancelled());
        assert_eq!(post(&program, &process).await.0, StatusCode::ACCEPTED);
        program.asked().await;
    }

    #[tokio::test]
    async fn the_file_that_runs_is_nothing_new() {
        let program = Program::new(std::env::current_exe().unwrap());
        assert_eq!(program.look().await.next, None);
        assert_ne!(Program::new("/x".into()).look().await.process, program.look().await.process);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_does_not_begin_anew_with_a_program_that_does_not_know_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path().join("data"))).await.unwrap();
        let path = dir.path().join("coracle");
        let program = Program::new(path.clone());
        program.serves(keyspace.clone());
        let process = program.look().await.process;
        let put = |newest: u32| {
            let formats = format!("{{\"oldest\": {newest}, \"newest\": {newest}}}");
            let text = format!("#!/bin/sh\necho '{{\"version\": \"7\", \"formats\": {formats}}}'\n");
            // Another file in its place: one that runs cannot be written.
            let part = dir.path().join("part");
            std::fs::write(&part, text).unwrap();
            std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(&part, &path).unwrap();
        };
        put(Formats::OWN.newest + 1);
        let (code, why) = post(&program, &process).await;
        assert!(code == StatusCode::CONFLICT && why.contains("the log is in format"), "{code} {why}");
        assert!(!program.0.asked.is_cancelled());
        put(Formats::OWN.oldest);
        assert_eq!(post(&program, &process).await.0, StatusCode::ACCEPTED);
        assert!(program.0.asked.is_cancelled());
        // Whoever has not heard so asks again.
        assert_eq!(post(&program, &process).await.0, StatusCode::ACCEPTED);
        keyspace.shutdown().await;
    }

    /// What lets a server begin anew may be written long after whoever asked was told that nobody knows.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_stays_takes_back_whatever_let_it_go_and_whenever() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path().join("data"))).await.unwrap();
        let program = Program::new(std::env::current_exe().unwrap());
        program.serves(keyspace.clone());
        let stop = CancellationToken::new();
        let says = tokio::spawn(is_back(keyspace.clone(), Some(program.clone()), stop.clone()));
        let is_let = || keyspace.get("coracle group", "anew 1").is_some();
        for _ in 0..2 {
            keyspace.begin_anew(Formats::OWN).await.unwrap();
            let back = async {
                while is_let() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), back).await.expect("it says that it is back");
        }
        // Who goes says so in its next life.
        program.begin().await.unwrap();
        keyspace.barrier().await.unwrap();
        assert!(is_let());
        // Whoever has not heard so asks again, and is answered while the server ends.
        let again = async {
            tokio::select! {
                biased;
                _ = program.is_back(&keyspace) => panic!("it is about to go"),
                begun = program.begin() => begun,
            }
        };
        tokio::time::timeout(Duration::from_secs(30), again).await.expect("it is answered").unwrap();
        stop.cancel();
        says.await.unwrap();
        assert!(is_let());
        keyspace.shutdown().await;
    }
}
