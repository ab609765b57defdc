//! What the simulator itself costs: the same lists, to a client that throws them away.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nftfleet_tests::kube_sim::KubeSim;
use nftfleet_tests::lab::{CONTROL4, Lab};

use crate::report::{Report, seconds};

/// The agent's own page.
const PAGE: u32 = 500;

/// Lists everything twice, since the simulator prints an object when it is first asked for; tells how long the second took.
pub fn measure(lab: &Lab, kubernetes: &KubeSim, report: &mut Report) {
    let token = kubernetes.token();
    let list = || {
        lab.node(1).netns.run(|| {
            let (before, begin) = (processor_time(), Instant::now());
            let paths = ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"];
            let bytes: usize = paths.iter().map(|path| pages(path, token)).sum();
            (bytes, begin.elapsed(), processor_time().saturating_sub(before))
        })
    };
    list();
    let (bytes, took, busy) = list();
    let share = format!(
        "{} for {} MiB, {} of processor time",
        seconds(took),
        bytes >> 20,
        seconds(busy)
    );
    report.line("the simulator's share: a client that throws the same lists away", share);
}

/// Reads all pages of a list; gives their bytes.
fn pages(path: &str, token: &str) -> usize {
    let stream = TcpStream::connect((CONTROL4, 6443)).expect("the simulator listens");
    let mut stream = BufReader::with_capacity(1 << 20, stream);
    let (mut bytes, mut more) = (0, String::new());
    loop {
        let labels =
            "labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name";
        let request = format!(
            "GET {path}?limit={PAGE}&{labels}{more} HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        stream
            .get_mut()
            .write_all(request.as_bytes())
            .expect("a request can be sent");
        let page = body(&mut stream);
        bytes += page.len();
        // The head of a page has the token, long before the items end.
        let head = String::from_utf8_lossy(&page[..page.len().min(512)]);
        let Some((_, token)) = head.split_once("\"continue\":\"") else {
            return bytes;
        };
        more = format!("&continue={}", token.split('"').next().unwrap_or_default());
    }
}

/// An answer's body, whose length the simulator tells.
fn body(stream: &mut BufReader<TcpStream>) -> Vec<u8> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("an answer");
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(given) = line.strip_prefix("content-length: ") {
            length = given.parse().expect("a length");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("the whole body");
    body
}

/// The processor time of this process so far: the simulator's, and little else.
pub fn processor_time() -> Duration {
    let (user, system) = crate::agent::times(Path::new("/proc/self/stat"));
    user + system
}
