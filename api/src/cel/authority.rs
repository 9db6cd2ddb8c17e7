//! `authorizer`: from a group or a path to a decision (Kubernetes' library `authz`).

use std::sync::Arc;

use super::eval::{Run, Stop};
use super::value::Val;

/// What a question to the authorizer costs: an expression may ask twice (Kubernetes').
const CHECK_COST: usize = 350_000;

/// Answers what an expression asks of `authorizer`.
pub trait Authorizer: Sync {
    /// What the request itself is about, `authorizer.requestResource`.
    fn request_resource(&self) -> Asked;
    /// Whether the caller of the request, or a service account (its namespace and its name), may do this with `verb`.
    fn check(&self, account: Option<(&str, &str)>, asked: &Asked, verb: &str) -> Decision;
}

/// What may be allowed, but for the verb.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Of what is no resource.
    pub path: Option<String>,
    /// The group of a resource.
    pub group: String,
    /// As `pods`.
    pub resource: String,
    /// As `status`.
    pub subresource: String,
    /// Empty for the cluster.
    pub namespace: String,
    /// Empty for all.
    pub name: String,
}

impl Asked {
    fn bytes(&self) -> usize {
        let Asked { path, group, resource, subresource, namespace, name } = self;
        let path = path.as_ref().map_or(0, String::len);
        path + [group, resource, subresource, namespace, name].iter().map(|text| text.len()).sum::<usize>()
    }
}

/// An authorizer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why, in words.
    pub reason: String,
}

/// A value on the way from `authorizer` to a decision.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    account: Option<(String, String)>,
    pub at: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    Authorizer,
    Group(String),
    /// A path or a resource.
    Check(Asked),
    Decided(Decision),
}

impl Authority {
    pub fn type_name(&self) -> &'static str {
        match &self.at {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Group(_) => "kubernetes.authorization.GroupCheck",
            Stage::Check(Asked { path: Some(_), .. }) => "kubernetes.authorization.PathCheck",
            Stage::Check(_) => "kubernetes.authorization.ResourceCheck",
            Stage::Decided(_) => "kubernetes.authorization.Decision",
        }
    }

    /// Bytes of its texts, which each step of a chain copies.
    pub fn bytes(&self) -> usize {
        let account = self.account.as_ref().map_or(0, |(namespace, name)| namespace.len() + name.len());
        account
            + match &self.at {
                Stage::Authorizer => 0,
                Stage::Group(group) => group.len(),
                Stage::Check(asked) => asked.bytes(),
                Stage::Decided(decision) => decision.reason.len(),
            }
    }

    /// Where a chain begins: `authorizer`, or what the request itself is about.
    pub fn begin<'a>(at: Stage) -> Val<'a> {
        Val::Authority(Arc::new(Authority { account: None, at }))
    }

    fn at<'a>(&self, at: Stage) -> Val<'a> {
        Val::Authority(Arc::new(Authority { account: self.account.clone(), at }))
    }

    /// Calls one of its functions.
    pub fn call<'a>(&self, run: &mut Run<'a>, name: &str, given: &[Val<'a>]) -> Result<Val<'a>, Stop> {
        let mut texts = Vec::with_capacity(given.len());
        for value in given {
            let Val::Text(text) = value else { return Err(Stop::overload()) };
            texts.push(&**text);
        }
        let with = |change: fn(&mut Asked, String), text: &str| match &self.at {
            Stage::Check(asked) if asked.path.is_none() => {
                let mut asked = asked.clone();
                change(&mut asked, text.to_owned());
                Ok(self.at(Stage::Check(asked)))
            }
            _ => Err(Stop::overload()),
        };
        match (name, &self.at, texts.as_slice()) {
            (".path", Stage::Authorizer, [path]) if path.trim().is_empty() => Err(Stop::new("path must not be empty")),
            (".path", Stage::Authorizer, [path]) => {
                Ok(self.at(Stage::Check(Asked { path: Some((*path).to_owned()), ..Asked::default() })))
            }
            (".group", Stage::Authorizer, [group]) => Ok(self.at(Stage::Group((*group).to_owned()))),
            (".serviceAccount", Stage::Authorizer, [namespace, name]) => {
                if !crate::meta::names::is_dns_subdomain(name) {
                    return Err(Stop::new("Invalid service account name"));
                }
                if !crate::meta::names::is_dns_label(namespace) {
                    return Err(Stop::new("Invalid service account namespace"));
                }
                let account = Some(((*namespace).to_owned(), (*name).to_owned()));
                Ok(Val::Authority(Arc::new(Authority { account, at: Stage::Authorizer })))
            }
            (".resource", Stage::Group(_), [resource]) if resource.trim().is_empty() => {
                Err(Stop::new("resource must not be empty"))
            }
            (".resource", Stage::Group(group), [resource]) => {
                let asked = Asked { group: group.clone(), resource: (*resource).to_owned(), ..Asked::default() };
                Ok(self.at(Stage::Check(asked)))
            }
            (".subresource", _, [text]) => with(|asked, text| asked.subresource = text, text),
            (".namespace", _, [text]) => with(|asked, text| asked.namespace = text, text),
            (".name", _, [text]) => with(|asked, text| asked.name = text, text),
            // Roles do not look at what is selected.
            (".fieldSelector" | ".labelSelector", Stage::Check(Asked { path: None, .. }), [text]) => {
                // Read as a list of requirements: so many, and so much each (Kubernetes').
                run.spend(10 + text.len() / 10 + text.len() / 2 * 50)?;
                with(|_, _| {}, text)
            }
            (".check", Stage::Check(asked), [verb]) => {
                run.spend(CHECK_COST)?;
                let authorizer = run.authorizer.ok_or_else(|| Stop::new("no such attribute"))?;
                let account = self.account.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
                Ok(self.at(Stage::Decided(authorizer.check(account, asked, verb))))
            }
            (".allowed", Stage::Decided(decision), []) => Ok(Val::Bool(decision.allowed)),
            (".reason", Stage::Decided(decision), []) => Ok(Val::own(decision.reason.as_str())),
            // An authorizer that is asked in this process does not fail.
            (".errored", Stage::Decided(_), []) => Ok(Val::Bool(false)),
            (".error", Stage::Decided(_), []) => Ok(Val::own("")),
            _ => Err(Stop::overload()),
        }
    }
}
