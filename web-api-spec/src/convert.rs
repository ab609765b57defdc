//! Wire values to domain values and back. What comes in is checked here, with the path of each field that is wrong.

mod report;
mod rollout;
mod task;

use nftfleet_domain::ids::BadName;
use std::collections::BTreeSet;

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

/// A verdict with what else should be known of the node.
pub fn readiness(verdict: &Verdict, warnings: &BTreeSet<Reason>) -> types::Readiness {
    let words = |reasons: &BTreeSet<Reason>| reasons.iter().map(Into::into).collect();
    let (verdict, reasons) = match verdict {
        Verdict::Ready => (types::Verdict::Ready, vec![]),
        Verdict::Blocked(reasons) => (types::Verdict::Blocked, words(reasons)),
        Verdict::Unknown(reasons) => (types::Verdict::Unknown, words(reasons)),
    };
    types::Readiness {
        verdict,
        reasons,
        warnings: words(warnings),
    }
}

impl From<&ProxyMode> for types::ProxyMode {
    fn from(mode: &ProxyMode) -> Self {
        let (name, detail) = match mode {
            ProxyMode::None => ("NONE", None),
            ProxyMode::IptablesLegacy => ("IPTABLES_LEGACY", None),
            ProxyMode::IptablesNft => ("IPTABLES_NFT", None),
            ProxyMode::IptablesBoth => ("IPTABLES_BOTH", None),
            ProxyMode::Ipvs => ("IPVS", None),
            ProxyMode::KubeProxyNftables => ("KUBE_PROXY_NFTABLES", None),
            ProxyMode::Nftfleet => ("NFTFLEET", None),
            ProxyMode::Other(name) => ("OTHER", Some(name.clone())),
            ProxyMode::Ambiguous(signs) => ("AMBIGUOUS", Some(signs.clone())),
            ProxyMode::Unknown(why) => ("UNKNOWN", Some(why.clone())),
        };
        Self {
            mode: name.to_owned(),
            detail,
        }
    }
}
