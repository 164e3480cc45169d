//! The answer to a request that is not of its endpoint's form.

use crate::error::MatrixError;

/// The `error` of a request that lacks something, or has something else there.
pub(super) fn malformed(what: &str) -> MatrixError {
    MatrixError::bad_json(format!("`{what}` is missing or malformed."))
}
