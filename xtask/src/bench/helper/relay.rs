//! Bytes in, bytes out, one backend connection per client connection.

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

/// As large as the largest reply of the benchmark.
const BUFFER: usize = 64 * 1024;

pub async fn serve(port: u16, backend: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (mut client, _) = listener.accept().await?;
        tokio::task::spawn_local(async move {
            let mut server = TcpStream::connect(("127.0.0.1", backend)).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await
        });
    }
}
