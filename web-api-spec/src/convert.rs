//! Wire values to domain values and back. What comes in is checked here, with the path of each field that is wrong.

mod report;
mod rollout;
mod task;

use nftfleet_domain::ids::BadName;
use nftfleet_domain::readiness::{ProxyMode, Reason, Verdict};

use crate::problem::FieldFault;
use crate::types;

pub use rollout::plan_request;
pub use task::{BadProgress, progress_of, progress_to};

/// A name from a field of a request.
///
/// # Errors
/// The fault of the field at `path`.
pub fn name<T: std::str::FromStr<Err = BadName>>(path: &str, text: &str) -> Result<T, FieldFault> {
    text.parse().map_err(|bad: BadName| FieldFault {
        path: path.to_owned(),
        message: bad.to_string(),
    })
}

impl From<&Reason> for types::ReadinessReason {
    fn from(reason: &Reason) -> Self {
        Self {
            code: reason.code.clone(),
            message: reason.message.clone(),
            remedy: reason.remedy.clone(),
        }
    }
}

impl From<&Verdict> for types::Readiness {
    fn from(verdict: &Verdict) -> Self {
        let (verdict, reasons) = match verdict {
            Verdict::Ready => (types::Verdict::Ready, vec![]),
            Verdict::Blocked(reasons) => (types::Verdict::Blocked, reasons.iter().map(Into::into).collect()),
            Verdict::Unknown(reasons) => (types::Verdict::Unknown, reasons.iter().map(Into::into).collect()),
        };
        Self { verdict, reasons }
    }
}

impl From<&ProxyMode> for types::ProxyMode {
    fn from(mode: &ProxyMode) -> Self {
        let (name, detail) = match mode {
            ProxyMode::None => ("NONE", None),
            ProxyMode::IptablesLegacy => ("IPTABLES_LEGACY", None),
            ProxyMode::IptablesNft => ("IPTABLES_NFT", None),
            ProxyMode::Ipvs => ("IPVS", None),
            ProxyMode::KubeProxyNftables => ("KUBE_PROXY_NFTABLES", None),
            ProxyMode::Nftfleet => ("NFTFLEET", None),
            ProxyMode::Ambiguous(signs) => ("AMBIGUOUS", Some(signs.clone())),
            ProxyMode::Unknown(why) => ("UNKNOWN", Some(why.clone())),
        };
        Self {
            mode: name.to_owned(),
            detail,
        }
    }
}
