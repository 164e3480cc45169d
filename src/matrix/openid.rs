//! Tokens by which users show other services who they are (Client-Server API, "OpenID"; Server-Server API, "OpenID").
//!
//! A token is what it says, with the server's signature: nothing is kept for it.

use super::{
    base64,
    identifiers::UserId,
    signing::{SigningKey, VerifyKey},
};

/// A token that says until `expires_ts` that whoever has it was given it by `user`.
pub fn token(key: &SigningKey, user: &UserId, expires_ts: i64) -> String {
    let statement = format!("{expires_ts} {user}");
    let signature = key.sign_text(&signed_text(&statement));
    url_safe(&format!("{}.{signature}", base64::encode(statement.as_bytes())))
}

/// The user of a token that holds at `now`.
pub fn user(key: &VerifyKey, token: &str, now: i64) -> Option<UserId> {
    let (statement, signature) = token.split_once('.')?;
    let statement = String::from_utf8(base64::decode(statement)?).ok()?;
    key.verify_text(&signed_text(&statement), signature).ok()?;
    let (expires_ts, user) = statement.split_once(' ')?;
    let holds = expires_ts.parse::<i64>().is_ok_and(|expires_ts| now < expires_ts);
    UserId::parse(user).ok().filter(|_| holds)
}

/// What is signed. It is no JSON, as all else is that the key signs.
fn signed_text(statement: &str) -> String {
    format!("OpenID token {statement}")
}

/// It travels in the query of a URL.
fn url_safe(text: &str) -> String {
    text.replace('+', "-").replace('/', "_")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_token_holds_for_its_user_and_its_time() {
        let key = SigningKey::from_line("ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap();
        let alice = UserId::parse("@alice ö:example.org").unwrap();
        let made = token(&key, &alice, 1_000);
        assert!(made.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{made}");
        assert_eq!(user(&key.verify_key(), &made, 999), Some(alice.clone()));
        assert_eq!(user(&key.verify_key(), &made, 1_000), None);
        let other = token(&key, &UserId::parse("@bob:example.org").unwrap(), 2_000);
        let mixed = format!("{}.{}", other.split('.').next().unwrap(), made.split('.').nth(1).unwrap());
        for junk in ["", ".", "a.b", &mixed, &made[1..], &format!("{made}A")] {
            assert_eq!(user(&key.verify_key(), junk, 0), None, "{junk}");
        }
    }
}
