//! Cuts off UDP flows whose endpoint is gone.
//!
//! Connection tracking sends a flow where it was sent first, for as long as packets come: a client that keeps its port would
//! speak to an endpoint that is gone for ever. TCP notices by itself; for UDP the entry is deleted, as kube-proxy does.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nftfleet_domain::service::Family;

use super::actor::{Flows, ServingUdp};
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
) -> std::io::Result<Sender<Flows>> {
    let (tell, inbox) = channel();
    std::thread::Builder::new()
        .name("udp-flows".to_owned())
        .spawn(move || run(&mut conntrack, &inbox, &mut looked))?;
    Ok(tell)
}

fn run(conntrack: &mut Conntrack, inbox: &Receiver<Flows>, looked: &mut impl FnMut(Duration, usize)) {
    let mut looks = Looks::default();
    loop {
        let next = if looks.next.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(RETRY)
        };
        match next {
            Ok(told) => looks.hear(told),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for told in inbox.try_iter() {
            looks.hear(told);
        }
        if looks.next.is_empty() {
            continue;
        }
        looks.begin();
        let begun = Instant::now();
        match cut(conntrack, &mut looks, inbox) {
            Ok(count) => {
                looked(begun.elapsed(), count);
                if count > 0 {
                    tracing::info!(count, "UDP flows to endpoints that are gone were cut off");
                }
                looks.now.clear();
            }
            Err(error) => {
                tracing::warn!(%error, "UDP flows could not be cut off; trying again");
                looks.give_up();
            }
        }
    }
}

/// What a look through the flows goes by, and what waits for the next one.
#[derive(Debug, Default)]
struct Looks {
    now: ServingUdp,
    next: ServingUdp,
}

impl Looks {
    /// A look under way leaves everybody alone who is to serve from now on: the flows that it has listed may be newer than what
    /// it was begun for.
    fn hear(&mut self, told: Flows) {
        let (Flows::Coming(serving) | Flows::Changed(serving)) = &told;
        for (vip, endpoints) in serving {
            if let Some(spared) = self.now.get_mut(vip) {
                spared.extend(endpoints);
            }
        }
        if let Flows::Changed(serving) = told {
            self.next.extend(serving);
        }
    }

    fn begin(&mut self) {
        self.now = std::mem::take(&mut self.next);
    }

    /// The look failed: what it was for waits again, unless something newer does.
    fn give_up(&mut self) {
        for (vip, endpoints) in std::mem::take(&mut self.now) {
            self.next.entry(vip).or_insert(endpoints);
        }
    }

    fn of(&self, family: Family) -> ServingUdp {
        let of_family = self.now.iter().filter(|(vip, _)| Family::of(vip.address) == family);
        of_family.map(|(vip, serving)| (*vip, serving.clone())).collect()
    }
}

/// Cuts off the flows whose endpoint does not serve any more. Gives their number.
fn cut(conntrack: &mut Conntrack, looks: &mut Looks, inbox: &Receiver<Flows>) -> Result<usize, ConntrackError> {
    let mut count = 0;
    for family in Family::BOTH {
        if looks.of(family).is_empty() {
            continue;
        }
        let flows = conntrack.udp_flows(family)?;
        // Whoever brought the newest of these flows told of it before.
        for told in inbox.try_iter() {
            looks.hear(told);
        }
        for flow in stale(&flows, &looks.of(family)) {
            count += usize::from(conntrack.delete(flow)?);
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use nftfleet_domain::service::{Endpoint, Protocol, Vip};

    use super::*;

    fn serving(endpoints: &[u8]) -> ServingUdp {
        let vip = Vip {
            address: IpAddr::from([10, 96, 0, 10]),
            protocol: Protocol::Udp,
            port: 53,
        };
        let endpoint = |n: &u8| Endpoint {
            address: IpAddr::from([10, 128, 0, *n]),
            port: 53,
        };
        [(vip, endpoints.iter().map(endpoint).collect())].into()
    }

    #[test]
    fn a_look_under_way_spares_whoever_is_told_of_meanwhile() {
        let mut looks = Looks::default();
        looks.hear(Flows::Changed(serving(&[1])));
        looks.begin();
        looks.hear(Flows::Coming(serving(&[2])));
        assert_eq!(looks.now, serving(&[1, 2]));
        assert!(looks.next.is_empty(), "nothing is written yet");
        looks.hear(Flows::Changed(serving(&[2, 3])));
        assert_eq!((&looks.now, &looks.next), (&serving(&[1, 2, 3]), &serving(&[2, 3])));
        // The first one, who is gone, goes with the next look.
        looks.begin();
        assert_eq!(looks.now, serving(&[2, 3]));
    }

    #[test]
    fn a_look_that_failed_is_done_again_with_the_newest() {
        let mut looks = Looks::default();
        looks.hear(Flows::Changed(serving(&[1])));
        looks.begin();
        looks.give_up();
        assert_eq!(looks.next, serving(&[1]));
        looks.begin();
        looks.hear(Flows::Changed(serving(&[2])));
        looks.give_up();
        assert_eq!(looks.next, serving(&[2]));
    }
}
