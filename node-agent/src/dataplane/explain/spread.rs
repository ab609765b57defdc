//! From what an endpoint is picked, and what a client's ticket is worth.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use nftfleet_domain::service::{Endpoint, Family};

use super::{Affinity, Client, Remembered, Spread};
use crate::dataplane::layout::{TICKETS, names};
use crate::dataplane::place::LAST_RESORT;
use crate::dataplane::programmed::{Group, HeldList, Which};

/// What is drawn from in a group of a list, and which endpoints a packet of this client may be sent to.
pub fn spread(
    family: Family,
    which: Which,
    list: &HeldList,
    group: Group,
    client: Client,
) -> (Spread, Vec<SocketAddr>) {
    let (class, drawn, timeout): (u16, Vec<Endpoint>, _) = match group {
        Group::Class(class) => {
            let slots = list.slots.iter().take(usize::from(class));
            (class, slots.flatten().copied().collect(), None)
        }
        Group::Sticky { timeout, class } => {
            let mut tickets = list.tickets.range(..class).map(|(_, endpoint)| *endpoint).peekable();
            // Who has drawn in vain goes where the last ticket says.
            let resort = list.tickets.get(&LAST_RESORT).filter(|_| tickets.peek().is_none());
            (class, tickets.chain(resort.copied()).collect(), Some(timeout))
        }
    };
    let affinity = timeout.map(|timeout| Affinity {
        timeout,
        number: list.number,
        client,
    });
    let filled = drawn.len();
    let endpoints = sorted(drawn);
    let picked = match (timeout, client) {
        (Some(_), Client::Holds { endpoint, .. }) => vec![endpoint],
        _ => endpoints.clone(),
    };
    let spread = Spread {
        list: which,
        set: names::group(family, which, group),
        class,
        filled,
        endpoints,
        affinity,
    };
    (spread, picked)
}

/// What a remembered client's ticket means in a list.
pub fn client(which: Which, list: &HeldList, remembered: Remembered) -> Client {
    let first = match which {
        Which::All => TICKETS[0],
        Which::Local => TICKETS[1],
    };
    let remembered_for = remembered.expires.as_secs();
    let ticket = remembered.ticket.checked_sub(first).and_then(|n| u16::try_from(n).ok());
    match ticket.and_then(|ticket| Some((ticket, list.tickets.get(&ticket)?))) {
        Some((ticket, endpoint)) => Client::Holds {
            ticket,
            endpoint: SocketAddr::new(endpoint.address, endpoint.port),
            remembered_for,
        },
        None => Client::HoldsInVain { ticket, remembered_for },
    }
}

fn sorted(endpoints: Vec<Endpoint>) -> Vec<SocketAddr> {
    let sockets = endpoints
        .into_iter()
        .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port));
    sockets.collect::<BTreeSet<SocketAddr>>().into_iter().collect()
}
