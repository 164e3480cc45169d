//! Passwords: salted and slow to try.
//!
//! Argon2id with 19 MiB, two passes, one lane: the cost that OWASP recommends where memory is scarce. An isolate has 128 MB
//! for all requests it serves at once; hashing does not await, so at most one hash holds its 19 MiB at a time. One
//! hash takes some 50 ms of CPU in wasm, against the 30 s that a request may use. The cost is kept with each hash, so
//! that it can be raised later.
//!
//! For so long the thread does nothing else. [`may_hash`] tells which endpoints take that time, so that they can be answered where
//! nobody else waits for the thread; only [`Hashing`] hashes, and only an answer of one of those endpoints has it.

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use http::Method;

use crate::{
    error::MatrixError,
    platform::Random,
    router::{self, Call, Route},
};

/// Memory, in KiB.
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over the memory.
const PASSES: u32 = 2;
/// Lanes.
const LANES: u32 = 1;
/// The longest password, in bytes. Longer ones only cost.
const MAX_LENGTH: usize = 512;

/// A hash that no password has: what a login of an unknown user is compared with, so that it takes
/// as long as one of a known user.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The endpoints that take a password, some of them to confirm what is asked for.
static ENDPOINTS: &[Route<()>] = &[
    post("/_matrix/client/v3/login"),
    post("/_matrix/client/v3/register"),
    post("/_matrix/client/v3/account/password"),
    post("/_matrix/client/v3/account/deactivate"),
    post("/_matrix/client/v3/delete_devices"),
    post("/_matrix/client/v3/keys/device_signing/upload"),
    Route { method: Method::DELETE, template: "/_matrix/client/v3/devices/{deviceId}", handler: () },
];

const fn post(template: &'static str) -> Route<()> {
    Route { method: Method::POST, template, handler: () }
}

/// Whether the answer to such a request may take the time that hashing a password does.
pub fn may_hash(method: &Method, path: &str) -> bool {
    router::find(ENDPOINTS, method, &router::newest_path(path)).is_ok()
}

/// Hashes passwords in the answer to a request.
pub(super) struct Hashing(());

impl Hashing {
    /// In the answer to `call`, whose endpoint must be one of those of [`may_hash`].
    pub(super) fn in_answer_to(call: &Call) -> Self {
        let (method, path) = (call.request.method(), call.request.uri().path());
        debug_assert!(may_hash(method, path), "{method} {path} is not known to take a password");
        Self(())
    }

    /// The hash of a new password, as a PHC string with its salt and cost.
    ///
    /// # Errors
    /// 400 `M_INVALID_PARAM` for an empty password, or one over 512 bytes.
    pub(super) fn hash(&self, password: &str, random: &dyn Random) -> Result<String, MatrixError> {
        check(password)?;
        let mut salt = [0; 16];
        random.fill(&mut salt);
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|_| MatrixError::internal())?;
        let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let hash: PasswordHash =
            hasher.hash_password_with_salt(password.as_bytes(), &salt).map_err(|_| MatrixError::internal())?;
        Ok(hash.to_string())
    }

    /// Whether `password` is the one that was hashed; `None` stands for a user who does not exist.
    pub(super) fn matches(&self, password: &str, stored: Option<&str>) -> bool {
        if password.len() > MAX_LENGTH {
            return false;
        }
        let Ok(hash) = PasswordHash::new(stored.unwrap_or(NOBODY)) else { return false };
        Argon2::default().verify_password(password.as_bytes(), &hash).is_ok() && stored.is_some()
    }
}

/// Whether this may be a password.
///
/// # Errors
/// 400 `M_INVALID_PARAM` for an empty one, or one over 512 bytes.
pub(super) fn check(password: &str) -> Result<(), MatrixError> {
    if password.is_empty() || password.len() > MAX_LENGTH {
        return Err(MatrixError::invalid_param("The password must have between 1 and 512 bytes."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Counter(std::cell::Cell<u8>);

    impl Random for Counter {
        fn fill(&self, bytes: &mut [u8]) {
            self.0.set(self.0.get() + 1);
            bytes.fill(self.0.get());
        }
    }

    #[test]
    fn a_hash_matches_its_password_only() {
        let random = Counter(std::cell::Cell::new(0));
        let first = Hashing(()).hash("correct horse", &random).unwrap();
        assert!(first.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{first}");
        assert!(Hashing(()).matches("correct horse", Some(&first)));
        assert!(!Hashing(()).matches("correct hors", Some(&first)));
        assert!(!Hashing(()).matches("correct horse", None));
        assert_ne!(first, Hashing(()).hash("correct horse", &random).unwrap(), "each has its own salt");
    }

    #[test]
    fn a_hash_of_another_implementation_matches() {
        // From the reference implementation's own tests (phc-winner-argon2, src/test.c).
        let reference = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        assert!(Hashing(()).matches("password", Some(reference)));
        assert!(!Hashing(()).matches("differentpassword", Some(reference)));
        assert!(PasswordHash::new(NOBODY).is_ok(), "else an unknown user would be told apart by the time it takes");
    }

    #[test]
    fn endpoints_that_take_passwords_are_told_from_others() {
        for (method, path) in [
            (Method::POST, "/_matrix/client/v3/login"),
            (Method::POST, "/_matrix/client/r0/login"),
            (Method::DELETE, "/_matrix/client/v3/devices/ABC"),
        ] {
            assert!(may_hash(&method, path), "{method} {path}");
        }
        for (method, path) in [
            (Method::GET, "/_matrix/client/v3/login"),
            (Method::GET, "/_matrix/client/v3/devices/ABC"),
            (Method::POST, "/_matrix/client/v3/logout"),
            (Method::POST, "/_matrix/client/v3/login/"),
        ] {
            assert!(!may_hash(&method, path), "{method} {path}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let random = Counter(std::cell::Cell::new(0));
        assert!(Hashing(()).hash("", &random).is_err());
        assert!(Hashing(()).hash(&"x".repeat(513), &random).is_err());
        assert!(!Hashing(()).matches(&"x".repeat(1 << 20), Some(NOBODY)));
    }
}
