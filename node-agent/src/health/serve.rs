//! The ports that answer: they come and go as the input wants them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, Request, Response, StatusCode, header};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::state::{Answer, HealthInput};
use crate::clock::Clock;
use crate::pause::Pause;
use crate::telemetry::Telemetry;

/// How long at the most until a port is tried again: a load balancer gives a node up after a few questions without answer.
const PORT_AGAIN: Duration = Duration::from_secs(1);

/// How many connections may wait to be taken.
const BACKLOG: u32 = 128;

/// How many connections a port has at once. The node's addresses are open to strangers, and files are few.
const MOST_CONNECTIONS: usize = 128;

/// How long a connection lives. A request is one line and a few headers, and gets one answer.
const CONNECTION_WITHIN: Duration = Duration::from_secs(10);

/// What Google's load balancers spread traffic by.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What a port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    /// For the Service whose health check port this is.
    Service,
    /// `/healthz` and `/livez`.
    Proxy,
}

/// What every answer stands on.
#[derive(Clone)]
struct Source {
    input: watch::Receiver<HealthInput>,
    clock: Arc<dyn Clock>,
    telemetry: Arc<Telemetry>,
}

/// Serves the health check ports and, if an address is given, `/healthz` and `/livez` until the process ends, while the input
/// is active. A port that can't be opened is tried again for as long as it is wanted.
pub async fn serve(
    mut input: watch::Receiver<HealthInput>,
    healthz: Option<SocketAddr>,
    clock: Arc<dyn Clock>,
    telemetry: Arc<Telemetry>,
) {
    let mut open = BTreeMap::<(SocketAddr, Role), Port>::new();
    loop {
        let wanted = wanted(&input.borrow_and_update(), healthz);
        // First close all that goes: what comes may need the same port at another address.
        let leaving: Vec<_> = open.extract_if(.., |key, _| !wanted.contains(key)).collect();
        for (_, port) in leaving {
            port.close().await;
        }
        for (address, role) in wanted {
            open.entry((address, role)).or_insert_with(|| {
                let source = Source {
                    input: input.clone(),
                    clock: Arc::clone(&clock),
                    telemetry: Arc::clone(&telemetry),
                };
                Port(tokio::spawn(answer_at(address, role, source)))
            });
        }
        if input.changed().await.is_err() {
            // Nobody is left who could change it: what was last wanted stays.
            return std::future::pending().await;
        }
    }
}

/// The addresses and ports to listen at, each with what it answers.
fn wanted(input: &HealthInput, healthz: Option<SocketAddr>) -> BTreeSet<(SocketAddr, Role)> {
    if !input.active {
        return BTreeSet::new();
    }
    let everywhere = [IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let listen: &[IpAddr] = if input.listen.is_empty() {
        &everywhere
    } else {
        &input.listen
    };
    let checks = input.checks.values().flat_map(|check| {
        let at = |ip: &IpAddr| (SocketAddr::new(*ip, check.port), Role::Service);
        listen.iter().map(at)
    });
    checks.chain(healthz.map(|address| (address, Role::Proxy))).collect()
}

/// A port that is open, or waits for it. It is closed when this goes.
struct Port(JoinHandle<()>);

impl Port {
    /// Closes the port, and waits until it is.
    async fn close(mut self) {
        self.0.abort();
        // That it was cancelled is what we want.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens the port as soon as it is free, and answers for ever.
async fn answer_at(address: SocketAddr, role: Role, source: Source) {
    let mut pause = Pause::at_most(PORT_AGAIN);
    let mut warned = false;
    let listener = loop {
        match open(address) {
            Ok(listener) => break listener,
            Err(error) if warned => tracing::debug!(%error, %address, "still not open"),
            Err(error) => {
                warned = true;
                warn(&error, address, role, &source.input.borrow());
            }
        }
        pause.wait().await;
    };
    if warned {
        tracing::info!(%address, "the port for health checks is open now");
    }
    let mut pause = Pause::at_most(PORT_AGAIN);
    let mut connections = JoinSet::new();
    let mut latest = VecDeque::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    pause = Pause::at_most(PORT_AGAIN);
                    let conversation = timeout(CONNECTION_WITHIN, converse(stream, role, source.clone()));
                    latest.push_back(connections.spawn(conversation));
                }
                // Most likely the process has no file left. That passes, but not at once.
                Err(error) => {
                    tracing::warn!(%error, %address, "a connection can't be taken");
                    pause.wait().await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
        // Load balancers ask at once and go. Who is here longest does neither, and must not keep them out.
        if latest.len() > MOST_CONNECTIONS
            && let Some(longest) = latest.pop_front()
        {
            longest.abort();
        }
    }
}

fn warn(error: &io::Error, address: SocketAddr, role: Role, input: &HealthInput) {
    let service = match role {
        Role::Service => input.service_at(address.port()).map(|(name, _)| name.to_string()),
        Role::Proxy => None,
    };
    tracing::warn!(
        %error, service, %address, port = address.port(),
        "a port for health checks can't be opened; trying again while it is wanted"
    );
}

/// Listens. `[::]` means both families, or IPv4 if that is all that the kernel has.
fn open(address: SocketAddr) -> io::Result<TcpListener> {
    match listen(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && has_no_ipv6(&error) => {
            listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        done => done,
    }
}

fn has_no_ipv6(error: &io::Error) -> bool {
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            // A sysctl chooses what is meant otherwise.
            setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
            socket
        }
    };
    // Connections of the listener before us may linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers the connection's one request.
async fn converse(stream: TcpStream, role: Role, source: Source) {
    // The port that was knocked at is the one that we listen at.
    let Ok(port) = stream.local_addr().map(|address| address.port()) else {
        return;
    };
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let response = respond(port, role, request.uri().path(), &source);
        async move { Ok::<_, Infallible>(response) }
    });
    // Kept alive, a connection would outlive the port. Who asks nonsense or hangs up gets no answer; that is no matter of ours.
    let _ = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn respond(port: u16, role: Role, path: &str, source: &Source) -> Response<Body> {
    let now = source.clock.now();
    let input = source.input.borrow();
    let answer = match (role, path) {
        // kube-proxy answers whatever the path, and load balancers ask for any.
        (Role::Service, _) => input.service(port, now),
        (Role::Proxy, "/healthz") => Some(input.healthz(now)),
        (Role::Proxy, "/livez") => Some(input.livez(now)),
        (Role::Proxy, _) => None,
    };
    let mut response = Response::new(Body::empty());
    let Some(Answer { status, body, weight }) = answer else {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    };
    match (role, path) {
        (Role::Proxy, "/healthz") => source.telemetry.healthz(status.as_u16()),
        (Role::Proxy, _) => source.telemetry.livez(status.as_u16()),
        (Role::Service, _) => {}
    }
    *response.status_mut() = status;
    *response.body_mut() = body.into();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    if let Some(weight) = weight {
        headers.insert(WEIGHT, weight.into());
    }
    response
}

#[cfg(test)]
mod tests;
