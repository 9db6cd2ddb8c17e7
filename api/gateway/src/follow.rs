//! Which kinds are followed as their definitions come and go, and how long others wait for one: what whoever watches is to do and to
//! say, without a watch, a clock or a task. Nodes and the controller drive it with watches of their own, since the one may not use
//! what the other does; what they know comes to the same.
//!
//! ```text
//! watch of definitions ─ Heard ─► Followed ─► Step: end a kind's watch, say something of it, begin to watch it
//! watch of one kind ─ Said or Failed ─► Watched ─► what is said of it
//! ```

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::{GROUP, KINDS, Said};

/// Annotation of a definition: of which version of Gateway API it is.
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";
/// A kind that the API server has, and cannot list, counts as one that is not there after so many tries, until it can: others do not
/// wait for it. As often a definition is asked for before its kind is watched whatever it says.
pub const TRIES_MAX: u32 = 8;

/// What the watch of definitions says.
#[derive(Debug, Clone)]
pub enum Heard {
    /// All are about to come.
    Listing,
    /// One is there; its metadata.
    Is(ObjectMeta),
    /// All have come.
    Listed,
    /// One is gone.
    Gone(ObjectMeta),
    /// It was not told.
    Failed(Failed),
}

/// Why a watch says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// It is not there, or not for whoever asks.
    Refused,
    /// A list was answered with something that is none.
    Answered,
    /// Who could not be reached, or has no time, answers when he can.
    Later,
}

impl Failed {
    /// By the status with which a list was answered.
    pub fn of_list(status: u16) -> Failed {
        match status {
            403 | 404 => Failed::Refused,
            429 | 503 | 504 => Failed::Later,
            _ => Failed::Answered,
        }
    }
}

/// What whoever follows is to do next. A kind is named by its place in [`KINDS`].
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The watch of a kind ends: nothing of what it says comes later.
    End(usize),
    /// This is so of a kind.
    Say(usize, Said),
    /// A kind is watched from now on.
    Watch(usize),
}

/// A definition. One of another uid or generation may be served in other versions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Defined {
    which: (Option<String>, Option<i64>),
    bundle: Option<String>,
}

/// Which kinds are followed: those whose definitions are there. One that is not would be refused again and again.
#[derive(Debug, Default)]
pub struct Followed {
    watched: HashMap<usize, Defined>,
    /// Those of a list that is being read.
    listing: Option<HashMap<usize, Defined>>,
    /// Whether it was said which there are: who is refused the list later, for a moment perhaps, knows what there was.
    is_told: bool,
}

impl Followed {
    /// Takes what was heard of definitions; what is to be done, in this order.
    pub fn take(&mut self, heard: Heard) -> Vec<Step> {
        match heard {
            Heard::Listing => {
                self.listing = Some(HashMap::new());
                Vec::new()
            }
            Heard::Is(metadata) => {
                let Some((kind, defined)) = read(metadata) else { return Vec::new() };
                match &mut self.listing {
                    Some(listing) => {
                        listing.insert(kind, defined);
                        Vec::new()
                    }
                    None => self.begin(kind, defined),
                }
            }
            Heard::Listed => {
                self.is_told = true;
                let mut listing = self.listing.take().unwrap_or_default();
                let kinds = 0..KINDS.len();
                let steps = kinds.flat_map(|kind| match listing.remove(&kind) {
                    Some(defined) => self.begin(kind, defined),
                    None => self.end(kind),
                });
                steps.collect()
            }
            Heard::Gone(metadata) => read(metadata).map(|(kind, _)| self.end(kind)).unwrap_or_default(),
            // Another's API server does not tell nodes which definitions there are: then there are none.
            Heard::Failed(Failed::Refused) if !std::mem::replace(&mut self.is_told, true) => {
                (0..KINDS.len()).flat_map(|kind| self.end(kind)).collect()
            }
            Heard::Failed(_) => Vec::new(),
        }
    }

    /// Whether any kind is watched.
    pub fn is_any(&self) -> bool {
        !self.watched.is_empty()
    }

    fn begin(&mut self, kind: usize, defined: Defined) -> Vec<Step> {
        let said = Step::Say(kind, Said::Bundle(defined.bundle.clone()));
        match self.watched.insert(kind, defined.clone()) {
            Some(before) if before == defined => Vec::new(),
            // It is served as it was.
            Some(before) if before.which == defined.which => vec![said],
            Some(_) => vec![Step::End(kind), said, Step::Watch(kind)],
            None => vec![said, Step::Watch(kind)],
        }
    }

    fn end(&mut self, kind: usize) -> Vec<Step> {
        let ended = self.watched.remove(&kind).map(|_| Step::End(kind));
        ended.into_iter().chain([Step::Say(kind, Said::Undefined)]).collect()
    }
}

/// A definition, and of which kind it is.
fn read(metadata: ObjectMeta) -> Option<(usize, Defined)> {
    let kind = defined_by(metadata.name.as_deref()?)?;
    let bundle = metadata.annotations.and_then(|mut annotations| annotations.remove(BUNDLE));
    Some((kind, Defined { which: (metadata.uid, metadata.generation), bundle }))
}

/// One kind that is watched.
#[derive(Debug, Default)]
pub struct Watched {
    /// Whether it was said what there is, or that there is nothing: then nobody waits for it.
    is_known: bool,
    failed: u32,
    /// Whether a list has begun and that was not said. Of one that fails before its first object nothing is said: it may never come.
    is_listing: bool,
}

impl Watched {
    /// Takes what the kind's watch says, or why it says nothing; what is known of the kind then, in this order.
    pub fn take(&mut self, said: Result<Said, Failed>) -> impl Iterator<Item = Said> + use<> {
        let said = match said {
            Ok(Said::Listing) => {
                self.is_listing = true;
                None
            }
            Ok(said) => {
                self.is_known |= matches!(said, Said::Listed);
                Some(said)
            }
            Err(failed) => self.gives_up(failed).then_some(Said::Undefined),
        };
        let is_listed = said.as_ref().is_some_and(|said| !matches!(said, Said::Undefined));
        let is_told = said.is_some() && std::mem::take(&mut self.is_listing) && is_listed;
        is_told.then_some(Said::Listing).into_iter().chain(said)
    }

    /// Whether it is waited for no longer, by this failure.
    fn gives_up(&mut self, failed: Failed) -> bool {
        let is_over = match failed {
            // It may be served a moment after its definition is there; or never, to a node.
            Failed::Refused => true,
            Failed::Answered => {
                self.failed = self.failed.saturating_add(1);
                self.failed >= TRIES_MAX
            }
            Failed::Later => false,
        };
        is_over && !std::mem::replace(&mut self.is_known, true)
    }
}

/// Whether a kind, by its place in [`KINDS`], is served in the version that is followed, by the text of its definition or why that is not
/// told; `None` where it is to be asked again. Where it cannot be told, whoever watches hears whether it is served.
pub fn is_served(kind: usize, answer: Result<&str, Failed>) -> Option<bool> {
    match answer {
        // What is no definition does not tell.
        Ok(text) => Some(serde_json::from_str(text).map_or(true, |of: Definition| of.serves(kind))),
        Err(Failed::Refused) => Some(true),
        Err(Failed::Answered | Failed::Later) => None,
    }
}

/// Where the definition of a kind, by its place in [`KINDS`], is read.
pub fn definition_path(kind: usize) -> String {
    format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}.{GROUP}", KINDS[kind].1)
}

/// The place in [`KINDS`] of the kind that a definition of this name is for, as `gateways.gateway.networking.k8s.io`.
fn defined_by(definition: &str) -> Option<usize> {
    let (plural, group) = definition.split_once('.')?;
    KINDS.iter().position(|(_, known, _)| *known == plural).filter(|_| group == GROUP)
}

/// What is looked at of a kind's definition: a schema is large. What has no versions is none, and says nothing of what is served.
#[derive(Debug, Deserialize)]
struct Definition {
    spec: DefinitionSpec,
}

#[derive(Debug, Deserialize)]
struct DefinitionSpec {
    versions: Vec<DefinitionVersion>,
}

#[derive(Debug, Deserialize)]
struct DefinitionVersion {
    name: String,
    served: bool,
}

impl Definition {
    fn serves(&self, kind: usize) -> bool {
        self.spec.versions.iter().any(|of| of.served && of.name == KINDS[kind].2)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Meta;

    const GATEWAYS: &str = "gateways.gateway.networking.k8s.io";

    /// `NAME UID GENERATION BUNDLE`.
    fn metadata(text: &str) -> ObjectMeta {
        let words: Vec<&str> = text.split(' ').collect();
        let bundle = words.get(3).map(|bundle| [(BUNDLE.to_owned(), (*bundle).to_owned())].into());
        ObjectMeta {
            name: Some(words[0].to_owned()),
            uid: words.get(1).map(|uid| (*uid).to_owned()),
            generation: words.get(2).and_then(|generation| generation.parse().ok()),
            annotations: bundle,
            ..ObjectMeta::default()
        }
    }

    fn heard(text: &str) -> Heard {
        match text.split_once(' ') {
            None if text == "listing" => Heard::Listing,
            None if text == "listed" => Heard::Listed,
            Some(("is", rest)) => Heard::Is(metadata(rest)),
            Some(("gone", rest)) => Heard::Gone(metadata(rest)),
            Some(("failed", status)) => Heard::Failed(Failed::of_list(status.parse().unwrap())),
            _ => panic!("{text}"),
        }
    }

    /// As `end 1`, `watch 1`, `bundle 1 v1.4.0`, `none 1`.
    fn shown(step: &Step) -> String {
        match step {
            Step::End(kind) => format!("end {kind}"),
            Step::Watch(kind) => format!("watch {kind}"),
            Step::Say(kind, Said::Bundle(bundle)) => format!("bundle {kind} {}", bundle.as_deref().unwrap_or("-")),
            Step::Say(kind, Said::Undefined) => format!("none {kind}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kinds_are_watched_while_their_definitions_are_there() {
        let all = ["none 0", "none 1", "none 2", "none 3", "none 4"];
        let others = ["none 0", "none 2", "none 3", "none 4"];
        let is = |rest: &str| format!("is {GATEWAYS} {rest}");
        let mut followed = Followed::default();
        for (said, expected) in [
            ("listing".to_owned(), vec![]),
            (is("u 1 v1.4.0"), vec![]),
            ("is gateways.example.com u 1".to_owned(), vec![]),
            ("is httproutes.gateway.networking.k8s.io u 1".to_owned(), vec![]),
            // A list that broke off says nothing.
            ("failed 500".to_owned(), vec![]),
            ("listing".to_owned(), vec![]),
            (is("u 1 v1.4.0"), vec![]),
            ("listed".to_owned(), vec!["none 0", "bundle 1 v1.4.0", "watch 1", "none 2", "none 3", "none 4"]),
            (is("u 1 v1.4.0"), vec![]),
            // It is another definition's version, and the same definition: what is watched goes on.
            (is("u 1 v1.4.1"), vec!["bundle 1 v1.4.1"]),
            (is("u 2 v1.4.1"), vec!["end 1", "bundle 1 v1.4.1", "watch 1"]),
            (is("v 2"), vec!["end 1", "bundle 1 -", "watch 1"]),
            ("gone services.example.com".to_owned(), vec![]),
            // Who was told once is told again.
            ("failed 403".to_owned(), vec![]),
            ("listing".to_owned(), vec![]),
            (is("v 2"), vec![]),
            ("listed".to_owned(), others.to_vec()),
            (format!("gone {GATEWAYS}"), vec!["end 1", "none 1"]),
            (is("w 1"), vec!["bundle 1 -", "watch 1"]),
            ("listing".to_owned(), vec![]),
            ("listed".to_owned(), vec!["none 0", "end 1", "none 1", "none 2", "none 3", "none 4"]),
        ] {
            let steps: Vec<String> = followed.take(heard(&said)).iter().map(shown).collect();
            assert_eq!(steps, expected, "{said}");
        }
        assert!(!followed.is_any());
        // Who is never told knows none, once that was said.
        let mut followed = Followed::default();
        for (said, expected) in [("failed 500", &[][..]), ("failed 403", &all), ("failed 403", &[])] {
            let steps: Vec<String> = followed.take(heard(said)).iter().map(shown).collect();
            assert_eq!(steps, expected, "{said}");
        }
    }

    #[test]
    fn all_kinds_are_followed_and_no_others() {
        let mut followed = Followed::default();
        for (at, (_, plural, _)) in KINDS.iter().enumerate() {
            let is = Heard::Is(metadata(&format!("{plural}.{GROUP} u 1")));
            assert!(followed.take(is).contains(&Step::Watch(at)), "{plural}");
        }
        let found = [GATEWAYS, "gateways.example.com", "gateways"].map(defined_by);
        assert_eq!(found, [Some(1), None, None]);
    }

    #[test]
    fn a_list_is_told_with_its_first_object_or_its_end() {
        let object = || Said::Object(Meta::default(), Value::Null, Value::Null);
        let mut watched = Watched::default();
        for (said, expected) in [
            (Ok(Said::Listing), vec![]),
            (Err(Failed::Later), vec![]),
            (Ok(Said::Listing), vec![]),
            (Ok(object()), vec![Said::Listing, object()]),
            (Ok(object()), vec![object()]),
            (Ok(Said::Listed), vec![Said::Listed]),
            (Ok(Said::Listing), vec![]),
            (Ok(Said::Listed), vec![Said::Listing, Said::Listed]),
            (Err(Failed::Refused), vec![]),
        ] {
            assert_eq!(watched.take(said.clone()).collect::<Vec<_>>(), expected, "{said:?}");
        }
        // Of a list that was refused it is not said that it has begun.
        let mut watched = Watched::default();
        assert_eq!(watched.take(Ok(Said::Listing)).count(), 0);
        assert_eq!(watched.take(Err(Failed::Refused)).collect::<Vec<_>>(), [Said::Undefined]);
        assert_eq!(watched.take(Ok(Said::Listed)).collect::<Vec<_>>(), [Said::Listed], "what comes is heard");
    }

    #[test]
    fn a_kind_that_cannot_be_listed_is_waited_for_a_while() {
        let tries = 3 * TRIES_MAX;
        for (status, ends_at) in
            [(404, vec![0]), (403, vec![0]), (500, vec![TRIES_MAX - 1]), (503, vec![]), (429, vec![]), (504, vec![])]
        {
            let mut watched = Watched::default();
            let failed = Failed::of_list(status);
            let ends: Vec<u32> = (0..tries).filter(|_| watched.take(Err(failed)).next().is_some()).collect();
            assert_eq!(ends, ends_at, "{status}");
        }
        let mut watched = Watched::default();
        assert_eq!(watched.take(Ok(Said::Listed)).count(), 1);
        let given_up = (0..tries).any(|_| watched.take(Err(Failed::Answered)).next().is_some());
        assert!(!given_up, "what there was stays");
    }

    #[test]
    fn a_definition_says_which_versions_are_served() {
        let of = |versions: Value| is_served(1, Ok(&json!({"spec": {"versions": versions}}).to_string()));
        let version = |name: &str, served: bool| json!({"name": name, "served": served, "storage": true});
        assert_eq!(of(json!([version("v1beta1", false), version("v1", true)])), Some(true));
        assert_eq!(of(json!([version("v1beta1", true), version("v1", false)])), Some(false));
        assert_eq!(of(json!([version("v1beta1", true)])), Some(false));
        // What is none does not tell, nor does who is refused; who fails is asked again.
        for other in [json!({}), json!({"items": []}), json!({"spec": {}}), json!({"spec": {"versions": [{}]}})] {
            assert_eq!(is_served(1, Ok(&other.to_string())), Some(true), "{other}");
        }
        let failed = [Failed::Refused, Failed::Answered, Failed::Later].map(|failed| is_served(1, Err(failed)));
        assert_eq!(failed, [Some(true), None, None]);
    }
}
