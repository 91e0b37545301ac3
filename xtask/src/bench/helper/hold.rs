//! Idle connections.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::Context as _;

pub fn hold(port: u16, connections: usize) -> anyhow::Result<()> {
    let mut held = Vec::with_capacity(connections);
    for number in 0..connections {
        let context = || format!("connection {number}");
        let mut stream = TcpStream::connect(("127.0.0.1", port)).with_context(context)?;
        stream.write_all(b"GET /2 HTTP/1.1\r\nHost: bench.local\r\n\r\n")?;
        let mut reply = Vec::new();
        while !reply.ends_with(b"\r\n\r\nxx") {
            let mut part = [0; 1024];
            let count = stream.read(&mut part).with_context(context)?;
            anyhow::ensure!(count > 0, "connection {number} was closed");
            reply.extend_from_slice(&part[..count]);
        }
        held.push(stream);
    }
    println!("held");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
