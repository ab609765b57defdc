//! Makes the server in the lab reachable from the machine: a port of the loopback is handed through.

use std::net::{SocketAddr, TcpListener, TcpStream};

use nftfleet_tests::lab::CONTROL4;

/// The server's own port, on both sides.
const PORT: u16 = 8640;

/// A listening port of this machine's loopback.
pub struct Forward {
    listener: TcpListener,
}

impl Forward {
    /// Listens on the calling thread's loopback: on the usual port, or on a free one if that is taken.
    pub fn bind() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", PORT))
            .or_else(|_| TcpListener::bind(("127.0.0.1", 0)))
            .expect("a port of the loopback is free");
        Self { listener }
    }

    /// The URL to use on this machine.
    pub fn base(&self) -> String {
        format!(
            "http://{}",
            self.listener.local_addr().expect("a listener has an address")
        )
    }

    /// Hands every connection through to the server, until the process ends. The calling thread must have moved into the
    /// control namespace: connections of the threads that it starts leave from there.
    pub fn serve(&self) {
        let listener = self.listener.try_clone().expect("a listener can be cloned");
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                std::thread::spawn(move || hand_through(&client));
            }
        });
    }
}

fn hand_through(client: &TcpStream) {
    let Ok(server) = TcpStream::connect(SocketAddr::new(CONTROL4.into(), PORT)) else {
        return;
    };
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        // Either side may go at any time; then so does the other.
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client);
    });
}
