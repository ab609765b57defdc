//! Names of chains that belong to one Service port or one endpoint.

use data_encoding::BASE32;
use sha2::{Digest as _, Sha256};

/// `KUBE-SVC-…`: the chain that picks an endpoint. `service_port` is `namespace/name:port`, or without `:port` when
/// the port has no name; `protocol` is in small letters.
pub(super) fn service(service_port: &str, protocol: &str) -> String {
    format!("KUBE-SVC-{}", hash(&[service_port, protocol]))
}

/// `KUBE-EXT-…`: the way in from outside the cluster.
pub(super) fn external(service_port: &str, protocol: &str) -> String {
    format!("KUBE-EXT-{}", hash(&[service_port, protocol]))
}

/// `KUBE-SEP-…`: the chain of one endpoint, `10.0.0.1:80` or `[fd00::1]:80`.
pub(super) fn endpoint(service_port: &str, protocol: &str, endpoint: &str) -> String {
    format!("KUBE-SEP-{}", hash(&[service_port, protocol, endpoint]))
}

/// The first 16 letters, so that a name stays below iptables' limit of 28.
fn hash(parts: &[&str]) -> String {
    let digest = Sha256::digest(parts.concat());
    BASE32.encode(&digest)[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These names are the same in every cluster on earth, and stand in countless bug reports.
    #[test]
    fn well_known_names() {
        assert_eq!(service("default/kubernetes:https", "tcp"), "KUBE-SVC-NPX46M4PTMTKRN6Y");
        assert_eq!(service("kube-system/kube-dns:dns", "udp"), "KUBE-SVC-TCOU7JCQXEZGVUNU");
        assert_eq!(
            service("kube-system/kube-dns:dns-tcp", "tcp"),
            "KUBE-SVC-ERIFXISQEP7F7OF4"
        );
    }
}
