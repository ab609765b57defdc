//! `ServiceCIDR`s: where `ClusterIP`s come from.

use ipnet::IpNet;

use super::{BadObject, Object, Read, network};

/// A `ServiceCIDR`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its networks.
    pub networks: Vec<IpNet>,
}

mod json {
    use serde::Deserialize;

    #[derive(Deserialize)]
    pub struct ServiceCidr {
        #[serde(default)]
        pub spec: Spec,
    }

    #[derive(Default, Deserialize)]
    pub struct Spec {
        #[serde(default)]
        pub cidrs: Vec<String>,
    }
}

/// Reads a `ServiceCIDR`. A network that makes no sense is left out alone.
///
/// # Errors
/// The first other field that makes no sense.
pub fn service_cidr(object: &Object) -> Result<Read<ServiceCidr>, BadObject> {
    let json::ServiceCidr { spec } = object.read()?;
    let (mut networks, mut left_out) = (Vec::new(), Vec::new());
    for (i, text) in spec.cidrs.iter().enumerate() {
        match network(&format!("spec.cidrs[{i}]"), text) {
            Ok(network) => networks.push(network),
            Err(bad) => left_out.push(bad),
        }
    }
    Ok(Read {
        object: ServiceCidr { networks },
        left_out,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn its_networks_are_read() {
        let object =
            json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12", "10.0.0.0", "fd00::/108"]}});
        let read = service_cidr(&serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(read.left_out[0].path, "spec.cidrs[1]");
        let networks = ["10.96.0.0/12", "fd00::/108"].map(|n| n.parse().unwrap());
        assert_eq!(read.object.networks, networks);
    }
}
