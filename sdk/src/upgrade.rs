//! The processes of a cluster begin anew, one after the other, each with the program that is on its machine then.
//!
//! ```text
//! servers (who leads comes last) ─► nodes
//! each: asked to begin anew ─► another process answers, which has what the others have ─► its node is Ready ─► its pods are ready again
//! ```
//! The next one is asked only when all of that is true, so at most one is away at any time. A server answers for its program only
//! once a majority has confirmed that it misses nothing, and begins anew only while all others are there: until then it says why not,
//! and is asked again. What fails in passing is tried again until the time is over; who may not ask is told so at once.

mod waits;

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_server::Running;
use futures::StreamExt as _;
use http::Request;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use tokio::time::{Instant, timeout};

pub use self::waits::Told;
use self::waits::{Waits, Why};
use crate::{AskError, Remote};

/// Nodes that are asked at a time.
const ASKED_MAX: usize = 16;
/// How long a process may take to say what it runs; it may have to ask a program who it is.
const SAY_MAX: Duration = Duration::from_secs(40);
/// After this a process that is there still is asked once more: nobody knows whether it has heard.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// After this one is asked again that said that it does not begin anew now.
const NOT_NOW: Duration = Duration::from_secs(2);

/// A process of the cluster.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name among servers, or its node's.
    pub name: String,
    /// The server that it is, if it is one.
    pub member: Option<u64>,
    /// The node that it is, if it is one.
    pub node: Option<String>,
    /// Whether it leads.
    pub leads: bool,
    /// What it runs, or why that is not known.
    pub program: Result<Running, String>,
}

impl Part {
    /// What it is, in words.
    pub fn title(&self) -> String {
        match (&self.member, &self.node) {
            (Some(member), Some(_)) => format!("server {} ({member}) and its node", self.name),
            (Some(member), None) => format!("server {} ({member})", self.name),
            _ => format!("node {}", self.name),
        }
    }
}

/// How a process ends that is to begin anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// It is asked to.
    Asked,
    /// Somebody ends it, and starts another; that is waited for without end.
    ByHand,
}

/// Why an upgrade does not go on.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// It does not begin anew.
    #[error("{title} does not begin anew: {why}")]
    Refused {
        /// Which.
        title: String,
        /// Why.
        why: String,
    },
    /// It cannot be asked, or asked about: whoever asks may not, nobody knows it any more, or no server has answered for that long.
    #[error("ask about {title}; nothing else was touched after it")]
    Ask {
        /// Which.
        title: String,
        /// Why.
        #[source]
        source: AskError,
    },
    /// It is not well again.
    #[error("{title} is not well again after {} s: {why}; look at its log. Nothing else was touched after it", within.as_secs())]
    NotWell {
        /// Which.
        title: String,
        /// What it was waited for.
        why: String,
        /// How long.
        within: Duration,
    },
}

/// Pods that were ready, by uid: what each is called, and which lives its containers had.
type Serving = BTreeMap<String, (String, Vec<String>)>;

impl Remote {
    /// The processes of the cluster, in the order in which they begin anew: servers, of which the one that leads is the last, and
    /// nodes.
    pub async fn parts(&self) -> Result<Vec<Part>, AskError> {
        let members = self.members().await?;
        let mut parts = Vec::new();
        for member in members.into_iter().filter(|member| !member.is_absent()) {
            let program = self.program(&member_path(member.member)).await.map_err(|error| error.to_string());
            let (name, leads) = (member.name, member.leads);
            parts.push(Part { name, member: Some(member.member), node: None, leads, program });
        }
        parts.sort_by_key(|part| (part.leads, part.member));
        let nodes = Api::<Node>::all(self.client().clone()).list(&ListParams::default()).await?.items;
        let asked = futures::stream::iter(nodes).map(|node| async move {
            let name = node.name_any();
            let program = self.program(&node_path(&name)).await.map_err(|error| error.to_string());
            (name, program)
        });
        let mut asked = asked.buffered(ASKED_MAX);
        while let Some((name, program)) = asked.next().await {
            let process = program.as_ref().ok().map(|running| running.process.clone());
            let is_it = |part: &&mut Part| {
                process.is_some() && part.program.as_ref().ok().map(|r| &r.process) == process.as_ref()
            };
            match parts.iter_mut().find(is_it) {
                Some(server) => server.node = Some(name),
                None => parts.push(Part { name: name.clone(), member: None, node: Some(name), leads: false, program }),
            }
        }
        Ok(parts)
    }

    /// Waits until all servers but this part answer, if it is one: nobody else is to end while one is away. `tell` hears for whom it
    /// waits.
    pub async fn others_answer(
        &self,
        part: &Part,
        tell: &mut (dyn FnMut(Told<'_>) + Send),
    ) -> Result<(), UpgradeError> {
        let Some(own) = part.member else { return Ok(()) };
        let mut waits = Waits::new(part, How::ByHand, tell);
        loop {
            let why = match self.silent_but(own).await {
                Ok(None) => return Ok(()),
                Ok(Some(why)) => Why::NotYet(why),
                Err(error) => error.into(),
            };
            waits.a_while(why).await?;
        }
    }

    /// A server but `own` that does not answer, and why.
    async fn silent_but(&self, own: u64) -> Result<Option<String>, AskError> {
        let others = self.members().await?.into_iter().filter(|member| member.member != own && !member.is_absent());
        for member in others {
            match self.program(&member_path(member.member)).await {
                Ok(_) => {}
                Err(error @ AskError::Refused { code: 401 | 403, .. }) => return Err(error),
                Err(error) => return Ok(Some(format!("server {}: {error}", member.title()))),
            }
        }
        Ok(None)
    }

    /// Has the process begin anew, and waits until it is there again, and well; what it runs then. One that has done so since it was
    /// listed is not asked once more. `tell` hears when it is to be ended by hand, and what is waited for.
    pub async fn begin_anew(
        &self,
        part: &Part,
        how: How,
        tell: &mut (dyn FnMut(Told<'_>) + Send),
    ) -> Result<Running, UpgradeError> {
        let listed = match &part.program {
            Ok(running) => running,
            Err(why) => return Err(UpgradeError::Refused { title: part.title(), why: why.clone() }),
        };
        let mut waits = Waits::new(part, how, tell);
        let path = part.member.map_or_else(|| node_path(&part.name), member_path);
        let (old, mut serving) = loop {
            match self.before(part, &path).await {
                Ok(before) => break before,
                Err(error) => waits.a_while(error).await?,
            }
        };
        let running = if old.process != listed.process && is_done(how, listed, &old) {
            // Its pods have their other lives, or will have; nobody knows which they had.
            serving.values_mut().for_each(|(_, lives)| lives.clear());
            old
        } else {
            if how == How::ByHand {
                waits.tell_next();
            }
            self.another(&path, &old.process, how, &mut waits).await?
        };
        if let Some(node) = &part.node {
            self.node_is_well(node, &running.process, &serving, &mut waits).await?;
        }
        Ok(running)
    }

    /// What the part runs at its turn, and the pods that are ready on its node: in this life or, if it has just begun, in the one before.
    async fn before(&self, part: &Part, path: &str) -> Result<(Running, Serving), AskError> {
        let serving = match &part.node {
            Some(node) => self.serving(node).await?,
            None => Serving::new(),
        };
        Ok((self.program(path).await?, serving))
    }

    /// Waits for another process than `old`, which is asked to make place for it.
    async fn another(&self, path: &str, old: &str, how: How, waits: &mut Waits<'_>) -> Result<Running, UpgradeError> {
        let mut ask_at = (how == How::Asked).then(Instant::now);
        let mut said = match how {
            How::Asked => "it is ending",
            How::ByHand => "somebody is to start it again",
        }
        .to_owned();
        loop {
            let why = match self.program(path).await {
                Ok(running) if running.process != old => return Ok(running),
                Ok(_) if ask_at.is_some_and(|at| at <= Instant::now()) => {
                    let (again, why) = match self.ask_anew(path, old).await {
                        Ok(()) => (ASK_AGAIN, Why::NotYet("it is ending".to_owned())),
                        Err(AskError::Refused { code: 423, message }) => (NOT_NOW, Why::NotYet(message)),
                        // Or it has begun anew since it was looked at.
                        Err(AskError::Refused { code: 409, message }) => match self.program(path).await {
                            Ok(running) if running.process != old => return Ok(running),
                            Ok(_) => return Err(UpgradeError::Refused { title: waits.title(), why: message }),
                            Err(error) => (NOT_NOW, error.into()),
                        },
                        // Whether it has heard is seen by what it does.
                        Err(error) => (ASK_AGAIN, error.into()),
                    };
                    ask_at = Some(Instant::now() + again);
                    said = match &why {
                        Why::NotYet(why) => why.clone(),
                        Why::Failed(error) => error.to_string(),
                    };
                    why
                }
                Ok(_) => Why::NotYet(said.clone()),
                Err(error) => error.into(),
            };
            waits.a_while(why).await?;
        }
    }

    async fn node_is_well(
        &self,
        node: &str,
        process: &str,
        serving: &Serving,
        waits: &mut Waits<'_>,
    ) -> Result<(), UpgradeError> {
        let nodes: Api<Node> = Api::all(self.client().clone());
        loop {
            let why = match (self.program(&node_path(node)).await, nodes.get(node).await) {
                (Ok(running), Ok(node)) if running.process == process && is_true(&node, "Ready") => break,
                (Err(error), _) => error.into(),
                (_, Err(error)) => AskError::from(error).into(),
                _ => Why::NotYet("its node is not Ready".to_owned()),
            };
            waits.a_while(why).await?;
        }
        loop {
            let why = match self.missing(node, serving).await {
                Ok(missing) if missing.is_empty() => return Ok(()),
                Ok(missing) => Why::NotYet(format!("these pods were ready and are not: {}", missing.join(", "))),
                Err(error) => error.into(),
            };
            waits.a_while(why).await?;
        }
    }

    async fn program(&self, path: &str) -> Result<Running, AskError> {
        let request = Request::get(path).body(Vec::new()).expect("a path of names that the API has");
        match timeout(SAY_MAX, self.client().request(request)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(AskError::Other("it gives no answer".to_owned())),
        }
    }

    async fn ask_anew(&self, path: &str, process: &str) -> Result<(), AskError> {
        let body = serde_json::json!({"process": process}).to_string().into_bytes();
        let request = Request::post(path).header("content-type", "application/json").body(body);
        let request = request.expect("a path of names that the API has");
        match timeout(SAY_MAX, self.client().request::<Running>(request)).await {
            Ok(answer) => Ok(answer.map(drop)?),
            Err(_) => Err(AskError::Other("it gives no answer".to_owned())),
        }
    }

    async fn pods_of(&self, node: &str) -> Result<Vec<Pod>, AskError> {
        let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
        Ok(Api::<Pod>::all(self.client().clone()).list(&params).await?.items)
    }

    /// The pods of the node that are ready.
    async fn serving(&self, node: &str) -> Result<Serving, AskError> {
        let ready = self.pods_of(node).await?.into_iter().filter(|pod| is_ready(pod) && !is_over(pod));
        Ok(ready.filter_map(|pod| Some((pod.uid()?, (name_of(&pod), lives(&pod))))).collect())
    }

    /// Those of `serving` that are to run on the node still and are not ready in another life.
    async fn missing(&self, node: &str, serving: &Serving) -> Result<Vec<String>, AskError> {
        let now: BTreeMap<String, Pod> =
            self.pods_of(node).await?.into_iter().filter_map(|pod| Some((pod.uid()?, pod))).collect();
        let is_missing = |(uid, (_, before)): &(&String, &(String, Vec<String>))| {
            now.get(*uid).is_some_and(|pod| !(is_over(pod) || is_ready(pod) && lives(pod) != *before))
        };
        Ok(serving.iter().filter(is_missing).map(|(_, (name, _))| name.clone()).collect())
    }
}

/// Whether a process that is another one than was listed has begun anew as it was to. Of one that somebody starts by hand only the
/// version tells that: it may have ended of itself, and have been started again as it was.
fn is_done(how: How, listed: &Running, now: &Running) -> bool {
    match how {
        How::Asked => now.next.is_none(),
        How::ByHand => now.version != listed.version,
    }
}

fn member_path(member: u64) -> String {
    format!("/coracle/v1/members/{member}/program")
}

fn node_path(node: &str) -> String {
    format!("/api/v1/nodes/{node}/proxy/coracle/v1/program")
}

fn name_of(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether nothing of it is to run any more.
fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
}

/// Which lives its containers have: what was ready before its node ended is told as ready until the node says otherwise.
fn lives(pod: &Pod) -> Vec<String> {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    containers.filter_map(|container| container.container_id.clone()).collect()
}

fn is_true(node: &Node, condition: &str) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|found| found.type_ == condition && found.status == "True")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::Response;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    fn refusal(code: u16, message: &str) -> (u16, Value) {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "x", "code": code,
            "message": message,
        });
        (code, status)
    }

    fn running(process: &str) -> Value {
        json!({"version": "1", "process": process, "path": "/bin/coracle"})
    }

    /// No answer at all.
    const DEAD: (u16, Value) = (0, Value::Null);

    /// A cluster that answers so; the answers are told how often something was asked before.
    fn cluster(
        answer: impl Fn(&str, usize) -> (u16, Value) + Send + Sync + 'static,
    ) -> (Remote, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (told, answer) = (asked.clone(), Arc::new(answer));
        let service = tower::service_fn(move |request: Request<Body>| {
            let what = format!("{} {}", request.method(), request.uri().path());
            let (code, body) = {
                let mut told = told.lock().unwrap();
                let before = told.iter().filter(|before| **before == what).count();
                told.push(what.clone());
                answer(&what, before)
            };
            async move {
                if (code, &body) == (DEAD.0, &DEAD.1) {
                    return Err(std::io::Error::from_raw_os_error(111));
                }
                let body = Body::from(body.to_string().into_bytes());
                Response::builder().status(code).body(body).map_err(std::io::Error::other)
            }
        });
        (Remote::new(kube::Client::new(service, "default")), asked)
    }

    fn part(node: Option<&str>) -> Part {
        let program = serde_json::from_value(running("old")).unwrap();
        Part { name: "one".into(), member: Some(1), node: node.map(str::to_owned), leads: false, program: Ok(program) }
    }

    /// The pods of a node: one, which is ready in this life.
    fn pods(life: &str) -> (u16, Value) {
        let status = json!({
            "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": life}],
        });
        let pod = json!({"metadata": {"name": "web", "namespace": "default", "uid": "u"}, "status": status});
        (200, json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [pod]}))
    }

    fn ready_node() -> (u16, Value) {
        let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        (200, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"}, "status": status}))
    }

    fn nobody(_: Told<'_>) {}

    const NODES: &str = "GET /api/v1/nodes/one/proxy/coracle/v1/program";
    const PROGRAM: &str = "GET /coracle/v1/members/1/program";
    const ASKED: &str = "POST /coracle/v1/members/1/program";

    #[tokio::test(start_paused = true)]
    async fn what_fails_in_passing_is_tried_again() {
        let begun = Arc::new(Mutex::new(false));
        let (remote, asked) = cluster(move |what, before| match (what, before) {
            // Whatever is asked fails at first.
            ("GET /api/v1/pods" | "GET /api/v1/nodes/one" | PROGRAM, 0) => refusal(500, "for a moment"),
            ("GET /api/v1/pods", _) => {
                (200, json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": []}))
            }
            (ASKED, 0) => refusal(423, "not now: member 3 cannot be reached"),
            (ASKED, 1) => {
                *begun.lock().unwrap() = true;
                refusal(409, "it is another process by now")
            }
            (PROGRAM, _) if !*begun.lock().unwrap() => (200, running("old")),
            (PROGRAM, before) if before % 2 == 1 => refusal(504, "no answer yet"),
            (PROGRAM | NODES, _) => (200, running("new")),
            ("GET /api/v1/nodes/one", _) => ready_node(),
            other => panic!("{other:?}"),
        });
        let running = remote.begin_anew(&part(Some("one")), How::Asked, &mut nobody).await.unwrap();
        assert_eq!(running.process, "new");
        let asked = asked.lock().unwrap().iter().filter(|what| *what == ASKED).count();
        assert_eq!(asked, 2, "once more, and no more when it is done");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_for_good_ends_it_and_what_lasts_too_long_too() {
        let (remote, _) = cluster(|what, _| match what {
            ASKED => refusal(409, "the log is in format 3"),
            _ => (200, running("old")),
        });
        let refused = remote.begin_anew(&part(None), How::Asked, &mut nobody).await.unwrap_err().to_string();
        assert_eq!(refused, "server one (1) does not begin anew: the log is in format 3");
        let (remote, _) = cluster(|what, _| match what {
            ASKED => refusal(423, "not now: member 3 cannot be reached"),
            _ => (200, running("old")),
        });
        let late = remote.begin_anew(&part(None), How::Asked, &mut nobody).await.unwrap_err().to_string();
        assert!(late.contains("after 600 s: not now: member 3 cannot be reached"), "{late}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_next_while_another_server_does_not_answer() {
        let member = |number: u64| {
            json!({"member": number, "name": "x", "address": "", "api": "", "role": "voter", "leads": false,
                "matched": null, "heardMilliseconds": null})
        };
        let (remote, asked) = cluster(move |what, before| match (what, before) {
            ("GET /coracle/v1/members", _) => (200, json!({"members": [member(1), member(2)]})),
            ("GET /coracle/v1/members/2/program", 0..30) => refusal(502, "it is away"),
            ("GET /coracle/v1/members/2/program", _) => (200, running("x")),
            other => panic!("{other:?}"),
        });
        let mut said = Vec::new();
        remote.others_answer(&part(None), &mut |told| said.push(format!("{told:?}"))).await.unwrap();
        assert_eq!(asked.lock().unwrap().len(), 2 * 31);
        // Who waits that long wants to know for whom.
        let word = Told::WaitsFor("server x (2): it is away (HTTP status 502)");
        assert_eq!(said, [format!("{word:?}")]);
    }

    /// As when a process ended of itself while others had their turns.
    #[tokio::test(start_paused = true)]
    async fn of_one_that_has_begun_anew_before_its_turn_no_other_lives_are_waited_for() {
        let answer = |what: &str, _| match what {
            PROGRAM | NODES => (200, running("new")),
            "GET /api/v1/pods" => pods("second"),
            "GET /api/v1/nodes/one" => ready_node(),
            other => panic!("{other}"),
        };
        let (remote, _) = cluster(answer);
        let running_now = remote.begin_anew(&part(Some("one")), How::Asked, &mut nobody).await.unwrap();
        assert_eq!(running_now.process, "new", "nobody has asked it to");
        // Where that was the program that it had, its turn is yet to come.
        let anew = Arc::new(Mutex::new(false));
        let (remote, asked) = cluster(move |what, _| {
            let mut anew = anew.lock().unwrap();
            let restarted = json!({
                "version": "1", "process": "restarted", "path": "/bin/coracle",
                "next": {"fit": {"version": "2", "formats": {"oldest": 1, "newest": 9}}},
            });
            match what {
                ASKED => {
                    *anew = true;
                    (202, running("restarted"))
                }
                PROGRAM | NODES if *anew => (200, running("new")),
                PROGRAM | NODES => (200, restarted),
                "GET /api/v1/pods" => pods(if *anew { "third" } else { "second" }),
                "GET /api/v1/nodes/one" => ready_node(),
                other => panic!("{other}"),
            }
        });
        let running_now = remote.begin_anew(&part(Some("one")), How::Asked, &mut nobody).await.unwrap();
        assert_eq!(running_now.process, "new");
        assert_eq!(asked.lock().unwrap().iter().filter(|what| *what == ASKED).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn by_hand_the_next_is_named_when_all_is_known_of_it_and_what_is_waited_for_is_told() {
        let ended = Arc::new(Mutex::new(None::<Instant>));
        let seen = ended.clone();
        let (remote, _) = cluster(move |what, before| {
            let ended = *seen.lock().unwrap();
            let is_back = ended.is_some_and(|at| at.elapsed() > Duration::from_secs(2000));
            match what {
                "GET /api/v1/pods" if before == 0 => refusal(500, "for a moment"),
                _ if ended.is_some() && !is_back => DEAD,
                PROGRAM | NODES => (200, running(if is_back { "new" } else { "old" })),
                "GET /api/v1/pods" => pods(if is_back { "second" } else { "first" }),
                "GET /api/v1/nodes/one" => ready_node(),
                other => panic!("{other}"),
            }
        });
        let mut said = Vec::new();
        let mut tell = |told: Told<'_>| {
            if told == Told::Next {
                // Somebody who is quick.
                *ended.lock().unwrap() = Some(Instant::now());
            }
            said.push(format!("{told:?}"));
        };
        let part = part(Some("one"));
        let anew = timeout(Duration::from_secs(3000), remote.begin_anew(&part, How::ByHand, &mut tell)).await;
        assert_eq!(anew.expect("it is seen that it is back").unwrap().process, "new");
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0], "Next");
        assert!(said[1].starts_with("WaitsFor(\"the cluster does not answer"), "{said:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_not_is_told_at_once_and_a_cluster_that_has_vanished_in_time() {
        let forbidden = || refusal(403, "User \"u\" cannot list resource \"pods\"");
        let node = Part { name: "one".into(), member: None, ..part(Some("one")) };
        for (part, denied, code) in [
            (part(Some("one")), "GET /api/v1/pods", 403),
            (part(Some("one")), PROGRAM, 401),
            (part(None), ASKED, 403),
            (node.clone(), "GET /api/v1/nodes/one/proxy/coracle/v1/program", 404),
        ] {
            for how in [How::Asked, How::ByHand] {
                if how == How::ByHand && denied == ASKED {
                    continue;
                }
                let (remote, _) = cluster(move |what, _| match what {
                    what if what == denied => refusal(code, "no"),
                    PROGRAM => (200, running("old")),
                    "GET /api/v1/pods" => pods("first"),
                    other => panic!("{other}"),
                });
                let begun = Instant::now();
                let error = remote.begin_anew(&part, how, &mut nobody).await.unwrap_err();
                assert!(matches!(error, UpgradeError::Ask { .. }), "{denied}: {error}");
                assert_eq!(begun.elapsed(), Duration::ZERO, "{denied}");
            }
        }
        let (remote, _) = cluster(move |_, _| forbidden());
        let error = remote.others_answer(&part(None), &mut nobody).await.unwrap_err();
        assert!(matches!(error, UpgradeError::Ask { .. }), "{error}");
        let (remote, _) = cluster(|_, _| DEAD);
        let error = remote.begin_anew(&part(Some("one")), How::Asked, &mut nobody).await.unwrap_err();
        assert!(crate::is_unreachable(&error), "{error}");
        assert_eq!(error.to_string(), "ask about server one (1) and its node; nothing else was touched after it");
    }
}
