//! Asks kube-proxy for its mode: `GET /proxyMode` at its metrics address.
//!
//! By hand in HTTP/1.0 and not through the client that talks to the server: the facts are collected where nothing is
//! asynchronous, and the answer is one word.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long all of it may take. kube-proxy is on this machine, and answers from memory.
const WITHIN: Duration = Duration::from_millis(500);

/// The longest answer that is read: Go's server sends some 200 bytes.
const LONGEST: usize = 4096;

/// kube-proxy's word: `iptables`, `ipvs`, `nftables`, or what a later release may say.
///
/// # Errors
/// Nobody listens, the answer takes too long, or it is no word.
pub fn ask(kube_proxy: SocketAddr) -> io::Result<String> {
    let until = Instant::now() + WITHIN;
    let mut stream = TcpStream::connect_timeout(&kube_proxy, WITHIN)?;
    stream.set_write_timeout(Some(WITHIN))?;
    let request = format!("GET /proxyMode HTTP/1.0\r\nHost: {kube_proxy}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; LONGEST];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // So the kernel calls it that the time is over.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
        if answer.len() > LONGEST {
            break;
        }
    }
    word(&String::from_utf8_lossy(&answer)).map_err(io::Error::other)
}

/// The word in an answer.
///
/// # Errors
/// There is none, in words.
fn word(answer: &str) -> Result<String, String> {
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(format!("it answers {:?}", shortened(status)));
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
    let is_word = (1..=32).contains(&body.len()) && body.bytes().all(|byte| byte.is_ascii_lowercase());
    if is_word {
        Ok(body.to_owned())
    } else {
        Err(format!("it answers {:?}, which is no mode", shortened(body)))
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Asks a server that reads the request, says this and, if told so, closes the connection.
    fn ask_one_that_says(answer: &'static str, closes: bool) -> io::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            stream.write_all(answer.as_bytes()).unwrap();
            if !closes {
                // Ends when the other side gives up.
                let _ = stream.read(&mut [0; 1]);
            }
            request
        });
        let told = ask(address);
        assert!(server.join().unwrap().starts_with("GET /proxyMode HTTP/1.0\r\n"));
        told
    }

    #[test]
    fn kube_proxys_word_is_read() {
        let answer = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n\
                      Content-Length: 8\r\n\r\nnftables";
        assert_eq!(ask_one_that_says(answer, true).unwrap(), "nftables");
    }

    #[test]
    fn what_is_no_word_is_an_error_that_quotes_it() {
        for (answer, said) in [
            ("HTTP/1.0 404 Not Found\r\n\r\nnftables", "404"),
            ("HTTP/1.0 200 OK\r\n\r\n<html>", "<html>"),
            ("HTTP/1.0 200 OK\r\n\r\n", "no mode"),
            ("SSH-2.0-OpenSSH_9.2", "SSH"),
            ("", "it answers"),
        ] {
            let error = ask_one_that_says(answer, true).unwrap_err().to_string();
            assert!(error.contains(said), "{answer:?}: {error}");
        }
    }

    #[test]
    fn who_never_ends_is_not_waited_for() {
        let started = Instant::now();
        let error = ask_one_that_says("HTTP/1.0 200 OK\r\n\r\nipv", false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(started.elapsed() >= WITHIN);
    }

    #[test]
    fn where_nobody_listens_is_an_error() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(ask(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}
