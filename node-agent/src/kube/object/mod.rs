//! Objects of the Kubernetes API, read from their JSON field by field.
//!
//! Only the fields that matter are read, straight from the text, and each object by itself. What makes no sense is refused with the path of its
//! field: the whole object where half of it would mislead (a Service's ports), else that part alone (one endpoint of a
//! slice). A typed list of `k8s-openapi` would fail as a whole.

mod node;
mod raw;
mod service;
mod service_cidr;
mod slice;

use std::net::IpAddr;
use std::str::FromStr as _;

use ipnet::IpNet;
use nftfleet_domain::service::{BadProtocol, Protocol};

pub use node::{Node, node};
pub use raw::Object;
use raw::Text;
pub use service::{Service, ServicePort, service};
pub use service_cidr::{ServiceCidr, service_cidr};
pub use slice::{NodeHint, Slice, SliceEndpoint, SlicePort, slice};

/// An object, or a part of one, that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct BadObject {
    /// Path of the field.
    pub path: String,
    /// What is wrong with it, and what is allowed.
    pub message: String,
}

impl BadObject {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}

/// An object that was read, and the parts of it that were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read<T> {
    /// What makes sense.
    pub object: T,
    /// What does not.
    pub left_out: Vec<BadObject>,
}

fn protocol(path: &str, text: Option<&str>) -> Result<Protocol, BadObject> {
    let bad = |error: BadProtocol| BadObject::new(format!("{path}.protocol"), error.to_string());
    text.map_or(Ok(Protocol::Tcp), |text| Protocol::from_str(text).map_err(bad))
}

/// A port's number; none if it is missing or 0.
fn port(path: &str, number: Option<i64>) -> Result<Option<u16>, BadObject> {
    match number {
        None | Some(0) => Ok(None),
        Some(number) => u16::try_from(number)
            .map(Some)
            .map_err(|_| BadObject::new(path, format!("{number} is not 1-65535"))),
    }
}

/// Reads an address. Leading zeros in IPv4 are decimal, as Kubernetes has always read them.
fn address(path: &str, text: &str) -> Result<IpAddr, BadObject> {
    let bad = || BadObject::new(path, format!("{text:?} is not an IP address"));
    if text.contains(':') {
        return text.parse().map_err(|_| bad());
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts
            .next()
            .filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(bad)?;
        *octet = part.parse().map_err(|_| bad())?;
    }
    if parts.next().is_some() {
        Err(bad())
    } else {
        Ok(IpAddr::from(octets))
    }
}

/// Reads a network, of which the bits after the prefix don't matter. Spaces around it are ignored, as in kube-proxy.
fn network(path: &str, text: &str) -> Result<IpNet, BadObject> {
    let bad = || BadObject::new(path, format!("{text:?} is not a CIDR such as 10.0.0.0/8"));
    let (first, prefix) = text.trim().split_once('/').ok_or_else(bad)?;
    let address = address(path, first).map_err(|_| bad())?;
    let prefix = prefix.parse().map_err(|_| bad())?;
    Ok(IpNet::new(address, prefix).map_err(|_| bad())?.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(address("x", "010.096.0.01").unwrap(), IpAddr::from([10, 96, 0, 1]));
        assert_eq!(network("x", " 010.1.2.3/8 ").unwrap(), "10.0.0.0/8".parse().unwrap());
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in ["", "10.0.0", "10.0.0.0.1", "10.0.0.256", "10.0.0.-1", "1:2", "10.0.0.x"] {
            assert_eq!(
                address("spec.x", text).unwrap_err().to_string(),
                format!("spec.x: {text:?} is not an IP address")
            );
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "/8", "10.0.0.0/x"] {
            assert_eq!(network("spec.x", text).unwrap_err().path, "spec.x", "{text}");
        }
    }
}
