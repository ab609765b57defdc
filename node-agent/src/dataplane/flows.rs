//! Cuts off UDP flows whose endpoint is gone.
//!
//! Connection tracking sends a flow where it was sent first, for as long as packets come: a client that keeps its port would
//! speak to an endpoint that is gone for ever. TCP notices by itself; for UDP the entry is deleted, as kube-proxy does.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nftfleet_domain::service::Family;

use super::actor::ServingUdp;
use super::netlink::conntrack::{Conntrack, ConntrackError, stale};

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Starts the thread that cuts flows off, and gives the end to tell it what has changed. Changes that pile up during a look
/// are done together by the next: a look goes over all flows of UDP. `looked` hears how long each took, and how many flows
/// were cut off.
///
/// # Errors
/// No thread could be started.
pub fn start(
    mut conntrack: Conntrack,
    mut looked: impl FnMut(Duration, usize) + Send + 'static,
) -> std::io::Result<Sender<ServingUdp>> {
    let (tell, inbox) = channel();
    std::thread::Builder::new()
        .name("udp-flows".to_owned())
        .spawn(move || run(&mut conntrack, &inbox, &mut looked))?;
    Ok(tell)
}

fn run(conntrack: &mut Conntrack, inbox: &Receiver<ServingUdp>, looked: &mut impl FnMut(Duration, usize)) {
    let mut pending = ServingUdp::new();
    loop {
        let next = if pending.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(RETRY)
        };
        match next {
            Ok(changed) => pending.extend(changed),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        pending.extend(inbox.try_iter().flatten());
        let begun = Instant::now();
        match cut(conntrack, &pending) {
            Ok(count) => {
                looked(begun.elapsed(), count);
                if count > 0 {
                    tracing::info!(count, "UDP flows to endpoints that are gone were cut off");
                }
                pending.clear();
            }
            Err(error) => tracing::warn!(%error, "UDP flows could not be cut off; trying again"),
        }
    }
}

/// Cuts off the flows to these VIPs whose endpoint does not serve any more. Gives their number.
fn cut(conntrack: &mut Conntrack, serving: &ServingUdp) -> Result<usize, ConntrackError> {
    let mut count = 0;
    for family in Family::BOTH {
        let of_family = serving.iter().filter(|(vip, _)| Family::of(vip.address) == family);
        let of_family: BTreeMap<_, _> = of_family.map(|(vip, serving)| (*vip, serving.clone())).collect();
        if of_family.is_empty() {
            continue;
        }
        let flows = conntrack.udp_flows(family)?;
        for flow in stale(&flows, &of_family) {
            count += usize::from(conntrack.delete(flow)?);
        }
    }
    Ok(count)
}
