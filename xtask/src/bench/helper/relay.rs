//! Bytes in, bytes out, one backend connection per client connection.

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

/// Large enough for most replies of the benchmark.
const BUFFER: usize = 64 * 1024;

/// Serves pairs of own port and port behind, until it is killed.
pub async fn serve(ports: &[(u16, u16)]) -> anyhow::Result<()> {
    let mut tasks = Vec::new();
    for &(port, backend) in ports {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        tasks.push(tokio::task::spawn_local(accept(listener, backend)));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn accept(listener: TcpListener, backend: u16) -> std::io::Result<()> {
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
