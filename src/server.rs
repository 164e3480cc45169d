//! One homeserver as a value: its configuration, its platform, and the routing of requests to the two APIs.

use std::rc::Rc;

use crate::{
    config::Config,
    platform::Platform,
    router::{Request, Response},
};

/// One homeserver. It holds no state of its own beyond caches of facts: any number of them may serve one database.
pub struct Server {
    /// What its operator has set.
    pub config: Rc<Config>,
    /// All it needs of the world.
    pub platform: Platform,
}

impl Server {
    /// A server of this configuration on this platform.
    pub fn new(config: Rc<Config>, platform: Platform) -> Self {
        Self { config, platform }
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request) -> Response {
        let _ = request;
        Response::default()
    }

    /// Does what the scheduled trigger is for.
    pub async fn scheduled(&self) {}
}
