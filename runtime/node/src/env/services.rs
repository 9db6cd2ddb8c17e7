//! Variables that tell a pod about Services (`pkg/kubelet/envvars`): `DB_SERVICE_HOST`, and the older docker links.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// A Service with a cluster address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLink {
    /// Its name.
    pub name: String,
    /// Its cluster address.
    pub address: IpAddr,
    /// Name (may be empty), port, protocol.
    pub ports: Vec<(String, u16, String)>,
}

/// The variables of these Services.
pub fn service_links(services: impl IntoIterator<Item = ServiceLink>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for service in services {
        let Some((_, first_port, first_protocol)) = service.ports.first() else { continue };
        let name = variable(&service.name);
        let host = match service.address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let mut put = |key: String, value: String| drop(variables.insert(key, value));
        put(format!("{name}_SERVICE_HOST"), service.address.to_string());
        put(format!("{name}_SERVICE_PORT"), first_port.to_string());
        put(format!("{name}_PORT"), format!("{}://{host}:{first_port}", first_protocol.to_lowercase()));
        for (port_name, port, protocol) in &service.ports {
            if !port_name.is_empty() {
                put(format!("{name}_SERVICE_PORT_{}", variable(port_name)), port.to_string());
            }
            let prefix = format!("{name}_PORT_{port}_{}", protocol.to_uppercase());
            put(prefix.clone(), format!("{}://{host}:{port}", protocol.to_lowercase()));
            put(format!("{prefix}_PROTO"), protocol.to_lowercase());
            put(format!("{prefix}_PORT"), port.to_string());
            put(format!("{prefix}_ADDR"), service.address.to_string());
        }
    }
    variables
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_the_kubelet_does() {
        let service = ServiceLink {
            name: "my-db".to_owned(),
            address: "10.96.0.7".parse().unwrap(),
            ports: vec![("p-1".to_owned(), 80, "TCP".to_owned())],
        };
        let all: Vec<String> = service_links([service]).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            all,
            [
                "MY_DB_PORT=tcp://10.96.0.7:80",
                "MY_DB_PORT_80_TCP=tcp://10.96.0.7:80",
                "MY_DB_PORT_80_TCP_ADDR=10.96.0.7",
                "MY_DB_PORT_80_TCP_PORT=80",
                "MY_DB_PORT_80_TCP_PROTO=tcp",
                "MY_DB_SERVICE_HOST=10.96.0.7",
                "MY_DB_SERVICE_PORT=80",
                "MY_DB_SERVICE_PORT_P_1=80",
            ]
        );
    }
}
