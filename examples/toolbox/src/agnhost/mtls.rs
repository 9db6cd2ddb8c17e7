//! `mtlsserver` and `mtlsclient`: who shows a certificate that both trust is told who it is, by the SPIFFE name in it.

use std::path::Path;
use std::time::Duration;

use super::options::Options;
use super::{failed, log};
use crate::clients::{Asked, ask};
use crate::http::{self, Request, Response};
use crate::server::Server;
use crate::tls;

/// Between requests of a client.
const EVERY: Duration = Duration::from_secs(10);

pub fn server(options: &Options) -> Result<u8, String> {
    let wanted = ["listen", "server-creds", "spiffe-trust-bundle"].map(|name| options.get(name));
    let [Some(listen), Some(bundle), Some(authorities)] = wanted else {
        return Err("missing required flags".to_owned());
    };
    let port = listen.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let port = port.ok_or_else(|| format!("invalid --listen: {listen}"))?;
    let config = tls::mutual_server(Path::new(bundle), Path::new(authorities))?;
    let mut server = Server::default();
    server.https(port, config, |request| echo(request).into()).map_err(failed("HTTPS"))?;
    Ok(server.run())
}

fn echo(request: &Request) -> Response {
    if request.path != "/spiffe-echo" {
        return Response::error(404, "404 page not found");
    }
    let Some(certificate) = &request.certificate else {
        return Response::error(401, "SPIFFE client certificate authentication required");
    };
    match identity(certificate) {
        Some(name) => Response::text(format!("Client Identity: {name}")),
        None => Response::error(401, "Malformed SPIFFE certificate"),
    }
}

/// The SPIFFE name among a certificate's alternative names: the seventh choice of GeneralName (RFC 5280, section 4.2.1.6), shorter than
/// 128 bytes. That the certificate is one, TLS has checked.
fn identity(certificate: &[u8]) -> Option<String> {
    const SCHEME: &[u8] = b"spiffe://";
    const URI: u8 = 0x86;
    let at = certificate.windows(SCHEME.len()).position(|window| window == SCHEME)?;
    let length = usize::from(*certificate.get(at.checked_sub(1)?)?);
    let is_uri = certificate.get(at.checked_sub(2)?) == Some(&URI) && length < 128;
    let name = certificate.get(at..at + length).filter(|_| is_uri)?;
    String::from_utf8(name.to_vec()).ok()
}

pub fn client(options: &Options) -> Result<u8, String> {
    let wanted = ["fetch-url", "server-trust-bundle", "client-cred-bundle"].map(|name| options.get(name));
    let [Some(url), Some(authorities), Some(bundle)] = wanted else {
        return Err("missing required flags".to_owned());
    };
    let url = http::url(url).map_err(|wrong| format!("invalid --fetch-url: {wrong}"))?;
    loop {
        std::thread::sleep(EVERY);
        // Both files may be others by now.
        let answer = tls::trusting_client(Path::new(authorities), Some(Path::new(bundle))).and_then(|config| {
            let asked = Asked { timeout: Some(EVERY), tls: Some(config), ..Asked::default() };
            ask(&url, &asked).map_err(|failure| failure.to_string())
        });
        match answer {
            Ok(answer) if answer.status / 100 == 2 => {
                log(&format!("Got response body: {}", String::from_utf8_lossy(&answer.body)));
            }
            Ok(answer) => log(&format!("while sending requests to the server: non-2xx status {}", answer.status)),
            Err(why) => log(&format!("while sending requests to the server: while getting URL: {why}")),
        }
    }
}
