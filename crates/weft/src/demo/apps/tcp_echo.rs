//! tcp-echo: sends back what it gets.

use tokio::net::TcpListener;

pub(super) async fn serve(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        tokio::spawn(async move {
            let (mut from, mut to) = stream.split();
            // Ends with the connection; how it ended is of no interest to an echo.
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    }
}
