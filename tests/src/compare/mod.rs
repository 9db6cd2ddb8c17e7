//! What our API server answers, beside what Kubernetes' own answers to the same requests.
//!
//! One object of every kind (`tests/requests/objects.yaml`) is all that is written by hand: [`script`] makes the requests of it, good
//! ones and wrong ones, field by field. Both servers are alone, without controllers, so that nobody else writes; what differs by nature
//! is masked ([`mask`]). A difference that is meant stands in `tests/requests/differences.txt` with its reason.

mod mask;
mod script;
mod server;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use futures::stream::{self, StreamExt as _};
use serde_json::Value;

use mask::{Answer, Asked};
use script::{Request, Resource};
use server::Server;

use crate::root;

/// Kinds whose requests are sent at a time.
const AT_A_TIME: usize = 8;

/// What is compared.
#[derive(Default)]
pub struct Options {
    /// The reference's kubeconfig; one is built and started when there is none.
    pub reference: Option<std::path::PathBuf>,
    /// Only requests whose title has this text are reported (all of a kind are sent: each stands on those before it).
    pub only: String,
}

/// A request that was answered in two ways.
pub struct Difference {
    /// Of the request, as `apps/v1 Deployment: create, spec.replicas absent`.
    pub title: String,
    /// Both answers, line by line.
    pub text: String,
}

/// What came out.
pub struct Outcome {
    /// How many requests were answered in the same way.
    pub same: usize,
    /// Those that were not, and are not listed.
    pub different: Vec<Difference>,
    /// How many are listed.
    pub meant: usize,
    /// Lines of the list that nothing differs by any more.
    pub stale: Vec<String>,
}

/// Differences that are meant: titles in which `*` is anything, each with its reason.
struct Meant(Vec<(String, std::cell::Cell<bool>)>);

impl Meant {
    fn read(text: &str) -> Meant {
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        Meant(
            lines
                .map(|line| {
                    let (title, reason) = line.split_once(" | ").unwrap_or_else(|| panic!("no reason: {line}"));
                    assert!(!reason.trim().is_empty(), "no reason: {line}");
                    (title.trim().to_owned(), std::cell::Cell::new(false))
                })
                .collect(),
        )
    }

    fn has(&self, title: &str) -> bool {
        let mut found = false;
        for (pattern, used) in &self.0 {
            if matches(pattern, title) {
                used.set(true);
                found = true;
            }
        }
        found
    }

    fn stale(self) -> Vec<String> {
        self.0.into_iter().filter(|(_, used)| !used.get()).map(|(title, _)| title).collect()
    }
}

/// Whether a text is as the pattern says, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => {
            let Some(left) = text.strip_prefix(head) else { return false };
            (0..=left.len()).filter(|at| left.is_char_boundary(*at)).any(|at| matches(rest, &left[at..]))
        }
    }
}

/// Sends everything to both.
///
/// # Panics
/// When one of them does not start, does not answer, or when the reference does not take the objects as they are.
pub async fn run(options: &Options) -> Outcome {
    let mut started = options.reference.is_none().then(crate::reference::Reference::start);
    let theirs = match (&mut started, &options.reference) {
        (Some(reference), _) => Server::of_config(reference.config().await),
        (None, Some(kubeconfig)) => Server::of_kubeconfig(kubeconfig).await,
        (None, None) => unreachable!("one of both"),
    };
    let folder = tempfile::tempdir().expect("a temporary directory");
    let ours = Server::start(folder.path()).await;
    let resources = discovered(&theirs).await;
    let mut scripts = script::all(&read("objects.yaml"), &resources);
    scripts.extend(script::written(&read("others.yaml")));
    scripts.push(script::documents(&resources));

    let (theirs, ours) = (&theirs, &ours);
    let played: Vec<Vec<(String, Answer, Answer)>> = stream::iter(scripts)
        .map(|requests| async move {
            let (expected, actual) = tokio::join!(play(theirs, &requests), play(ours, &requests));
            requests
                .into_iter()
                .zip(expected.into_iter().zip(actual))
                .map(|(request, (theirs, ours))| (request.title, theirs, ours))
                .collect()
        })
        .buffered(AT_A_TIME)
        .collect()
        .await;

    let meant = Meant::read(&read("differences.txt"));
    let mut outcome = Outcome { same: 0, different: Vec::new(), meant: 0, stale: Vec::new() };
    for (title, theirs, ours) in played.into_iter().flatten().filter(|(title, ..)| title.contains(&options.only)) {
        assert!(!title.ends_with(script::TAKEN) || theirs.code < 300, "{title}: the reference says {}", theirs.text());
        if theirs == ours {
            outcome.same += 1;
        } else if meant.has(&title) {
            outcome.meant += 1;
        } else {
            outcome.different.push(Difference { text: beside(&theirs.text(), &ours.text()), title });
        }
    }
    // Of a part nobody knows.
    outcome.stale = if options.only.is_empty() { meant.stale() } else { Vec::new() };
    outcome
}

/// A file of `tests/requests`.
fn read(name: &str) -> String {
    let path = root().join("tests/requests").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Sends the requests one after the other; what a server made is known to the requests after it.
async fn play(server: &Server, requests: &[Request]) -> Vec<Answer> {
    let mut known = BTreeMap::new();
    let mut answers = Vec::with_capacity(requests.len());
    for request in requests {
        let answer = server.send(request, &known).await;
        for (name, at) in &request.keeps {
            if let Some(value) = answer.body.pointer(at).and_then(Value::as_str) {
                known.insert(name.clone(), value.to_owned());
            }
        }
        answers.push(mask::masked(answer, &Asked::of(request.body.as_deref())));
    }
    answers
}

/// What a server serves, by (apiVersion, kind).
async fn discovered(server: &Server) -> BTreeMap<(String, String), Resource> {
    let mut found = BTreeMap::new();
    for path in ["/api", "/apis"] {
        let answer = server.get(path, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList").await;
        for group in answer.body["items"].as_array().into_iter().flatten() {
            for version in group["versions"].as_array().into_iter().flatten() {
                let group_name = group["metadata"]["name"].as_str().unwrap_or_default();
                for resource in version["resources"].as_array().into_iter().flatten() {
                    let resource = Resource::of(group_name, version, resource);
                    found.insert((resource.api_version.clone(), resource.kind.clone()), resource);
                }
            }
        }
    }
    assert!(found.len() > 50, "the reference serves {} kinds", found.len());
    found
}

/// Two texts, the lines that they do not share marked.
fn beside(theirs: &str, ours: &str) -> String {
    let (theirs, ours): (Vec<&str>, Vec<&str>) = (theirs.lines().collect(), ours.lines().collect());
    let same = |(a, b): &(&&str, &&str)| a == b;
    let head = theirs.iter().zip(&ours).take_while(same).count();
    let tail = theirs[head..].iter().rev().zip(ours[head..].iter().rev()).take_while(same).count();
    let mut text = String::new();
    for line in &theirs[head.saturating_sub(2)..head] {
        let _ = writeln!(text, "  {line}");
    }
    for (mark, lines) in [("-", &theirs[head..theirs.len() - tail]), ("+", &ours[head..ours.len() - tail])] {
        for line in lines {
            let _ = writeln!(text, "{mark} {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_anything() {
        for (pattern, text, expected) in [
            ("a: b", "a: b", true),
            ("a: *", "a: b c", true),
            ("* c", "a: b c", true),
            ("a*c*", "abcd", true),
            ("a*c", "abcd", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn lines_that_are_not_shared_are_shown_with_what_is_before() {
        assert_eq!(beside("a\nb\nc\nd", "a\nb\nx\nd"), "  a\n  b\n- c\n+ x\n");
    }

    #[test]
    fn a_line_of_the_list_that_nothing_differs_by_is_told() {
        let meant = Meant::read("# why\nv1 Pod: * | pods are other\nv1 Node: create | never\n");
        assert!(meant.has("v1 Pod: create") && !meant.has("v1 Secret: create"));
        assert_eq!(meant.stale(), ["v1 Node: create"]);
    }
}
