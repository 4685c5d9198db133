//! Carries TCP connections from inside a network namespace to an address outside of it, so that a test's node, which is
//! connected to nothing, reaches a real cluster's API server. What is carried is nobody's business here.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};

use crate::netns::Netns;

/// Listens on a free port of 127.0.0.1 inside a namespace, and connects whoever comes to `target` as the calling thread's
/// namespace reaches it, as long as the process lives; the port's address.
///
/// # Panics
/// When no port can be had.
#[must_use]
pub fn open(inside: &Netns, target: String) -> SocketAddr {
    let listener = inside.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A server that cannot be reached is one that hangs up.
            if let Ok(server) = TcpStream::connect(&target) {
                join(client, server);
            }
        }
    });
    address
}

fn join(client: TcpStream, server: TcpStream) {
    if let (Ok(to_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) {
        std::thread::spawn(move || carry(client, to_server));
        std::thread::spawn(move || carry(server, to_client));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut chunk = [0; 16 << 10];
    let copied: io::Result<()> = (|| {
        loop {
            match from.read(&mut chunk)? {
                0 => return Ok(()),
                count => to.write_all(&chunk[..count])?,
            }
        }
    })();
    // Either way its end, or its failure, is the other's end.
    let _ = (copied, to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_and_go_until_one_side_ends() {
        crate::netns::Netns::new().enter(|| {
            let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let inside = Netns::new();
            let address = open(&inside, server.local_addr().expect("its address").to_string());
            inside.enter(|| {
                let mut client = TcpStream::connect(address).expect("a connection");
                client.write_all(b"ping").expect("sent");
                let mut received = [0; 4];
                let (mut accepted, _) = server.accept().expect("a client");
                accepted.read_exact(&mut received).expect("received");
                assert_eq!(&received, b"ping");
                accepted.write_all(b"pong").expect("sent");
                drop(accepted);
                let mut answer = String::new();
                client.read_to_string(&mut answer).expect("an end");
                assert_eq!(answer, "pong");
            });
        });
    }
}
