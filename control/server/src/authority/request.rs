//! Requests for certificates (PKCS #10), as they are read to be checked and to be signed: both times the same bytes, here.

use std::net::IpAddr;

use coracle_controllers::Asked;
use rcgen::{SanType, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::AttributeTypeAndValue;

use super::Error;

/// A request that is signed with its own key.
pub(super) struct Request<'a>(X509CertificationRequest<'a>);

fn refused(reason: impl ToString) -> Error {
    Error::Request { reason: reason.to_string() }
}

impl<'a> Request<'a> {
    /// Reads a request (DER).
    pub(super) fn read(der: &'a [u8]) -> Result<Self, Error> {
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(refused)?;
        if !rest.is_empty() {
            return Err(refused("there is more after its end"));
        }
        request.verify_signature().map_err(refused)?;
        Ok(Self(request))
    }

    /// The key that signed it.
    pub(super) fn key(&self) -> Result<SubjectPublicKeyInfo, Error> {
        SubjectPublicKeyInfo::from_der(self.0.certification_request_info.subject_pki.raw).map_err(refused)
    }

    /// Its subject (DER).
    pub(super) fn subject(&self) -> &'a [u8] {
        self.0.certification_request_info.subject.as_raw()
    }

    /// What it asks for. Extensions other than names, and names of other kinds, are neither read nor signed, as by the reference.
    pub(super) fn asked(&self) -> Result<Asked, Error> {
        let subject = &self.0.certification_request_info.subject;
        let text = |value: &AttributeTypeAndValue<'_>| value.as_str().map(str::to_owned).map_err(refused);
        let mut common_names = subject.iter_common_name().map(text).collect::<Result<Vec<_>, _>>()?;
        if common_names.len() > 1 {
            return Err(refused("it has several common names"));
        }
        let organizations = subject.iter_organization().map(text).collect::<Result<Vec<_>, _>>()?;
        let mut asked =
            Asked { common_name: common_names.pop().unwrap_or_default(), organizations, ..Asked::default() };
        for extension in self.0.requested_extensions().into_iter().flatten() {
            let names = match extension {
                ParsedExtension::SubjectAlternativeName(names) => names,
                ParsedExtension::ParseError { error } => return Err(refused(error)),
                _ => continue,
            };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => asked.dns_names.push((*name).to_owned()),
                    GeneralName::RFC822Name(name) => asked.emails.push((*name).to_owned()),
                    GeneralName::URI(uri) => asked.uris.push((*uri).to_owned()),
                    GeneralName::IPAddress(bytes) => match address(bytes) {
                        Some(address) => asked.addresses.push(address),
                        None => return Err(refused("it names an address that is none")),
                    },
                    GeneralName::Invalid(..) => return Err(refused("it has a name that cannot be read")),
                    _ => {}
                }
            }
        }
        Ok(asked)
    }
}

/// The names of a certificate for whoever asks for this, in the reference's order.
pub(super) fn names(asked: &Asked) -> Result<Vec<SanType>, rcgen::Error> {
    let dns_names = asked.dns_names.iter().map(|name| Ok(SanType::DnsName(name.as_str().try_into()?)));
    let emails = asked.emails.iter().map(|name| Ok(SanType::Rfc822Name(name.as_str().try_into()?)));
    let addresses = asked.addresses.iter().map(|address| Ok(SanType::IpAddress(*address)));
    let uris = asked.uris.iter().map(|uri| Ok(SanType::URI(uri.as_str().try_into()?)));
    dns_names.chain(emails).chain(addresses).chain(uris).collect()
}

/// An address as a certificate has it.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(v6)
}
