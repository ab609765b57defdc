//! Does the data plane answer? Connects to Services from the node itself, through whatever rules stand.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use tokio::net::TcpStream;

/// How long a connection may take: longer than one lost packet costs (TCP retries after a second).
const CONNECT_WITHIN: Duration = Duration::from_millis(1500);

/// Tries before an address counts as not answering.
const TRIES: usize = 2;

/// An address that did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silent {
    /// The address.
    pub address: SocketAddr,
    /// What happened at the last try.
    pub why: String,
}

/// Connects to every address at the same time; gives those that did not answer.
pub async fn probe(addresses: &[SocketAddr]) -> Vec<Silent> {
    let silent = join_all(addresses.iter().map(|address| probe_one(*address))).await;
    silent.into_iter().flatten().collect()
}

async fn probe_one(address: SocketAddr) -> Option<Silent> {
    let mut why = String::new();
    for _ in 0..TRIES {
        match tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return None,
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = format!("no answer in {} ms", CONNECT_WITHIN.as_millis()),
        }
    }
    Some(Silent { address, why })
}

/// The silent addresses in words.
pub fn describe(silent: &[Silent]) -> String {
    silent
        .iter()
        .map(|s| format!("{}: {}", s.address, s.why))
        .collect::<Vec<_>>()
        .join("; ")
}
