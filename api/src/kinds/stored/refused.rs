//! Kinds of which no object can be made, because somebody would rely on what it does not do: requests that are never answered.
//! Lists of them are empty.

use super::show::Show::Name;
use super::{BLANK, Kind, Stored, row};
use crate::kinds::{Column, NAME, column};

const NO_CERTIFICATES: Stored = Stored::refused("gives pods no certificates");

const fn text(name: &'static str) -> Column {
    column(name, "string")
}

/// Cells of columns that are never shown, as there are no objects.
const NEVER: super::Show = super::Show::Text("", "");

pub(super) static ROWS: &[Kind] =
    &[row!(namespaced "certificates.k8s.io" "io.k8s.api.certificates.v1" "PodCertificateRequest"
        "podcertificaterequests" "podcertificaterequest",
        [
            NAME => Name,
            text("PodName") => NEVER,
            text("ServiceAccountName") => NEVER,
            text("NodeName") => NEVER,
            text("SignerName") => NEVER,
            text("State") => NEVER,
            text("UnverifiedUserAnnotations") => NEVER,
        ],
        NO_CERTIFICATES,
        has_status: true, selectable: &["spec.signerName", "spec.podName", "spec.nodeName"])];
