//! What it says of a server that it has not given what it was asked for: whether anything else is to be asked of it for now.

use std::collections::HashMap;

use http::StatusCode;

use crate::{federation::peers::requests::RequestError, matrix::identifiers::ServerName};

/// After so many failures in a row a server is set aside: one that fails at everything costs no more than that.
const MAX_FAILURES: usize = 3;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has answered, and this was its last word on what it was asked for.
    Answered,
    /// It is there, but has failed at this: a chain may be too long for it, or a state lost. It may well give something else.
    Failed,
    /// It is away or overloaded, and is to be left alone.
    Away,
}

impl Standing {
    pub(super) fn of(error: &RequestError) -> Self {
        match error {
            RequestError::Status { status: StatusCode::INTERNAL_SERVER_ERROR, .. } => Self::Failed,
            RequestError::Status { .. } if error.is_worth_retrying() => Self::Away,
            RequestError::Status { .. } | RequestError::Invalid(_) | RequestError::BadResponse(_) => Self::Answered,
            RequestError::Discovery(_) | RequestError::Unsupported(_) | RequestError::Unreachable(_) => Self::Away,
        }
    }
}

/// The servers that are asked nothing more: those that are away, and those that have only failed of late.
#[derive(Debug, Default)]
pub(super) struct SetAside {
    /// How often in a row each has failed.
    failures: HashMap<ServerName, usize>,
}

impl SetAside {
    /// Notes what came of asking a server for something.
    pub(super) fn note<T>(&mut self, name: &ServerName, outcome: &Result<T, RequestError>) {
        // Others may have been asked of it at the same time: what comes of these does not bring it back.
        if self.contains(name) {
            return;
        }
        match outcome.as_ref().map_err(Standing::of) {
            Ok(_) | Err(Standing::Answered) => {
                self.failures.remove(name);
            }
            Err(Standing::Failed) => *self.failures.entry(name.clone()).or_default() += 1,
            Err(Standing::Away) => {
                self.failures.insert(name.clone(), MAX_FAILURES);
            }
        }
    }

    /// Sets a server aside, whatever it answers.
    pub(super) fn add(&mut self, name: &ServerName) {
        self.failures.insert(name.clone(), MAX_FAILURES);
    }

    pub(super) fn contains(&self, name: &ServerName) -> bool {
        self.failures.get(name).is_some_and(|failures| *failures >= MAX_FAILURES)
    }
}
