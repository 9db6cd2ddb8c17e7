//! Writes that the server makes by itself.

use std::sync::Arc;

use http::Method;

use super::call::Call;
use super::options::{Admitted, Validation, WriteOptions};
use super::path::ResourcePath;
use crate::identity::Identity;

/// The server's own hand.
pub(crate) fn own_call(namespace: Option<&str>, name: &str) -> (Call, WriteOptions) {
    let (parts, ()) =
        http::Request::builder().method(Method::POST).body(()).expect("a request without headers").into_parts();
    let target = ResourcePath {
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        ..ResourcePath::default()
    };
    let identity = Identity::authenticated("system:apiserver", vec!["system:masters".to_owned()]);
    let options = WriteOptions {
        dry_run: false,
        manager: "coracle".to_owned(),
        validation: Validation::Ignore,
        force: false,
        own: true,
        admitted: Admitted::As(None),
    };
    (Call::new(parts, Arc::new(identity), target), options)
}
