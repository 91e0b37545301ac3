//! The HTTP request path.

use std::rc::Rc;

use crate::net::Io;
use crate::worker::{ConnContext, Worker};

/// Serves one downstream connection until it is closed or drained.
pub async fn serve_connection(io: Io, conn: Rc<ConnContext>, worker: Rc<Worker>) {
    drop((io, conn, worker));
}
