//! One homeserver as a value: its configuration, its platform, and the routing of requests to the two APIs.

use crate::{
    platform::Platform,
    router::{Request, Response},
};

/// One homeserver. It holds no state of its own beyond caches of facts: any number of them may serve one database.
pub struct Server {
    /// All it needs of the world.
    pub platform: Platform,
}

impl Server {
    /// Answers one request.
    pub async fn handle(&self, request: Request) -> Response {
        let _ = request;
        Response::default()
    }
}
