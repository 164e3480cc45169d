//! The identity keys of devices, cross-signing keys, and signatures on them: what key queries read.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{
    Answers, Store,
    device_lists::{self, FetchLease, Share},
    json_list,
    key_changes::KeyChange,
    one_time_keys,
    positions::DeviceListsPos,
    races::Race,
};
use crate::{
    matrix::{
        device_keys::{CrossSigningKey, DeviceKeys, Usage, UserKeys},
        identifiers::{ServerName, UserId},
    },
    platform::{DatabaseError, Statement, turns::LIGHT_SLICE},
};

/// Who asks for keys.
#[derive(Debug, Clone, Copy)]
pub enum KeyReader<'a> {
    /// A local user.
    User(&'a str),
    /// Another server.
    Server,
}

impl<'a> KeyReader<'a> {
    const fn user(self) -> Option<&'a str> {
        match self {
            Self::User(user) => Some(user),
            Self::Server => None,
        }
    }
}

/// A signature that a local user adds to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSignature {
    /// Whose key is signed.
    pub user_id: String,
    /// The device ID, or the public part of the master key.
    pub key_name: String,
    /// The key that has signed.
    pub key_id: String,
    /// The signature.
    pub signature: String,
}

/// ?1: a list of [user, device or NULL for all].
const DEVICE_KEYS: &str = "\
    SELECT k.user_id, k.device_id, k.keys, d.display_name FROM json_each(?1) AS wanted \
      CROSS JOIN device_keys AS k ON k.user_id = wanted.value ->> 0 \
        AND (wanted.value ->> 1 IS NULL OR k.device_id = wanted.value ->> 1) \
      LEFT JOIN devices AS d ON d.user_id = k.user_id AND d.device_id = k.device_id";

/// ?1: users.
const CROSS_SIGNING_KEYS: &str = "\
    SELECT k.user_id, k.usage, k.key FROM json_each(?1) AS wanted \
      CROSS JOIN cross_signing_keys AS k ON k.user_id = wanted.value";

/// ?1: users, ?2: who reads; NULL for another server. Users' signatures on their own keys, and the reader's.
const SIGNATURES: &str = "\
    SELECT s.user_id, s.signer, s.key_name, s.key_id, s.signature FROM json_each(?1) AS wanted \
      CROSS JOIN key_signatures AS s ON s.user_id = wanted.value AND s.signer IN (wanted.value, ?2)";

/// Breaks a constraint where the device ?2 is gone: `device_id` is NOT NULL.
const PUT_DEVICE_KEYS: &str = "\
    INSERT INTO device_keys (user_id, device_id, keys) \
    VALUES (?1, (SELECT d.device_id FROM devices AS d WHERE d.user_id = ?1 AND d.device_id = ?2), ?3) \
    ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys";

const DROP_SIGNATURES: &str = "DELETE FROM key_signatures WHERE user_id = ?1 AND signer = ?1 AND key_name = ?2";

const PUT_CROSS_SIGNING_KEY: &str = "\
    INSERT INTO cross_signing_keys (user_id, usage, key) VALUES (?1, ?2, ?3) \
    ON CONFLICT (user_id, usage) DO UPDATE SET key = excluded.key";

/// Breaks a constraint where the user's master key is not ?2, NULL for none: `key` is NOT NULL.
const GUARD_MASTER_KEY: &str = "\
    INSERT INTO cross_signing_keys (user_id, usage, key) SELECT ?1, 'master', NULL \
    WHERE (SELECT k.key FROM cross_signing_keys AS k WHERE k.user_id = ?1 AND k.usage = 'master') IS NOT ?2";

/// Breaks a constraint where the user has a device of one of the names ?2: `usage` is NOT NULL.
const GUARD_NAMES: &str = "\
    INSERT INTO cross_signing_keys (user_id, usage, key) SELECT ?1, NULL, '' FROM json_each(?2) AS name \
      CROSS JOIN devices AS d ON d.user_id = ?1 AND d.device_id = name.value";

/// ?1: the signer, ?2: a list of [user, key name, key ID, signature]. Before the stream moves on.
const PUT_SIGNATURES: &str = "\
    INSERT INTO key_signatures (user_id, signer, key_name, key_id, signature, pos) \
    SELECT value ->> 0, ?1, value ->> 1, value ->> 2, value ->> 3, s.position + 1 \
    FROM json_each(?2) CROSS JOIN streams AS s ON s.name = 'device_lists' WHERE true \
    ON CONFLICT (user_id, signer, key_name, key_id) DO UPDATE SET signature = excluded.signature, pos = excluded.pos";

/// What became of cross-signing keys.
#[derive(Debug)]
pub enum KeysPut {
    /// They are stored, and these servers are to be told.
    Done(Vec<ServerName>),
    /// The user has another master key by now.
    OtherMaster,
    /// A device of the user's has the name of one of them.
    NamesDevice,
}

/// What a key query finds: local users' keys, and what is held of others'.
#[derive(Debug, Default)]
pub struct KeysFound {
    /// Of each user of whom something is known, the keys.
    pub keys: BTreeMap<String, UserKeys>,
    /// Of each wanted user of another server with whom the reader shares a room, since when.
    pub shares: BTreeMap<String, Share>,
    /// The other servers' users among them whose keys are held, and as they are now.
    pub current: BTreeSet<String>,
    /// For the others that were ever asked about, until when nobody else asks for their keys.
    pub leases: BTreeMap<String, FetchLease>,
    /// The signatures that go with the keys, those of the reader on other servers' users' keys among them.
    signatures: Vec<SignatureOn>,
}

/// A signature that is kept apart from the key that it is on.
#[derive(Debug)]
struct SignatureOn {
    user_id: String,
    signer: String,
    key_name: String,
    key_id: String,
    signature: String,
}

impl KeysFound {
    /// Takes what was found for some of the same users later.
    pub fn update(&mut self, later: Self) {
        self.keys.extend(later.keys);
        self.current.extend(later.current);
        self.leases.extend(later.leases);
    }

    /// Takes the keys of a user as their server has told them: the reader's signatures are known here alone, and go with them.
    pub fn insert(&mut self, user_id: String, mut keys: UserKeys) {
        for of in self.signatures.iter().filter(|of| of.user_id == user_id) {
            keys.add_signature(&of.signer, &of.key_name, &of.key_id, &of.signature);
        }
        self.keys.insert(user_id, keys);
    }
}

impl Store {
    /// The keys of local users: of each all devices, or those that are named.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn local_keys(
        &self,
        wanted: &BTreeMap<String, Vec<String>>,
        reader: KeyReader<'_>,
    ) -> Result<BTreeMap<String, UserKeys>, DatabaseError> {
        Ok(self.user_keys(wanted, &[], reader).await?.keys)
    }

    /// The keys of local users as [`Store::local_keys`], and of other servers' users `remote` what is held. One round trip. So many
    /// of them are looked for at a time as others can wait for: of each it may look into all rooms of the reader.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn user_keys(
        &self,
        wanted: &BTreeMap<String, Vec<String>>,
        remote: &[String],
        reader: KeyReader<'_>,
    ) -> Result<KeysFound, DatabaseError> {
        let user = reader.user();
        let mut batches = vec![key_reads(wanted, remote, reader)];
        if let Some(user) = user {
            batches.extend(remote.chunks(LIGHT_SLICE).map(|users| device_lists::held(user, users).into()));
        }
        let mut answers = Answers::new(self.batches(batches).await?);
        let mut found = read_keys(&mut answers, reader)?;
        let mut of_remote = answers.rest();
        while let (Some(lists), Some(shares)) = (of_remote.next(), of_remote.next()) {
            let shares = device_lists::read_shares(&shares)?;
            for held in device_lists::read_held(&lists, &shares)? {
                if held.is_current {
                    found.current.insert(held.user_id.clone());
                } else {
                    found.leases.insert(held.user_id.clone(), held.lease);
                }
                if let Some(keys) = held.keys {
                    found.insert(held.user_id, keys);
                }
            }
            found.shares.extend(shares);
        }
        Ok(found)
    }

    /// A local user's devices and keys as other servers are told them, with the number that the list has then; `None` where there
    /// is no such user. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn device_list(&self, user_id: &str) -> Result<Option<(DeviceListsPos, UserKeys)>, DatabaseError> {
        const IS_HERE: &str = "SELECT 1 AS is_here FROM users WHERE user_id = ?1";
        let wanted = BTreeMap::from([(user_id.to_owned(), Vec::new())]);
        let mut statements = key_reads(&wanted, &[], KeyReader::Server);
        statements.push(Statement::new(IS_HERE, [user_id.into()]));
        statements.push(device_lists::position(user_id));
        let mut answers = Answers::new(self.batch(statements).await?);
        let mut found = read_keys(&mut answers, KeyReader::Server)?;
        let is_here = !answers.rows()?.is_empty();
        let position = device_lists::read_position(&answers.rows()?)?;
        Ok(is_here.then(|| (position, found.keys.remove(user_id).unwrap_or_default())))
    }

    /// Stores the identity keys of a device, ends the one-time keys of another identity, and returns the servers that are to be
    /// told. `None`, and nobody hears of them, where the device is gone.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_device_keys(
        &self,
        own: &ServerName,
        user: &UserId,
        device_id: &str,
        keys: &DeviceKeys,
    ) -> Result<Option<Vec<ServerName>>, DatabaseError> {
        let (user_id, text) = (user.as_str(), keys.object().to_text());
        let mut statements = Vec::from(one_time_keys::end_with_identity(user_id, device_id, &text));
        statements.push(Statement::new(PUT_DEVICE_KEYS, [user_id.into(), device_id.into(), text.into()]));
        statements.push(Statement::new(DROP_SIGNATURES, [user_id.into(), device_id.into()]));
        match self.change_keys(own, user, KeyChange::Device(device_id, Some(keys.object())), statements).await {
            Err(error) if Race::DeviceGone.has_lost(&error) => Ok(None),
            told => told.map(Some),
        }
    }

    /// The identity keys of one device, as it has signed them.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn device_keys(&self, user_id: &str, device_id: &str) -> Result<Option<String>, DatabaseError> {
        const SELECT: &str = "SELECT keys FROM device_keys WHERE user_id = ?1 AND device_id = ?2";
        let rows = self.query(Statement::new(SELECT, [user_id.into(), device_id.into()])).await?;
        rows.first().map(|row| row.text(0).map(str::to_owned)).transpose()
    }

    /// The cross-signing keys of a local user, as they were uploaded.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn cross_signing_keys(&self, user_id: &str) -> Result<BTreeMap<Usage, String>, DatabaseError> {
        let rows = self.query(Statement::new(CROSS_SIGNING_KEYS, [json_list([user_id]).into()])).await?;
        let mut keys = BTreeMap::new();
        for row in rows {
            keys.extend(Usage::parse(row.text(1)?).zip(Some(row.text(2)?.to_owned())));
        }
        Ok(keys)
    }

    /// Stores cross-signing keys of a local user, whose master key must still be `master`. With a new master key all earlier
    /// ones, `before`, go. Others are told of all that there are then: what waits to tell them of earlier ones gives way.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_cross_signing_keys(
        &self,
        own: &ServerName,
        user: &UserId,
        keys: &BTreeMap<Usage, CrossSigningKey>,
        before: &BTreeMap<Usage, CrossSigningKey>,
        master: Option<&String>,
    ) -> Result<KeysPut, DatabaseError> {
        const DROP: &str = "DELETE FROM cross_signing_keys WHERE user_id = ?1";
        const DROP_OWN_SIGNATURES: &str = "DELETE FROM key_signatures WHERE user_id = ?1 AND signer = ?1";
        let user_id = user.as_str();
        let names = json_list(keys.values().map(CrossSigningKey::public));
        let mut statements = vec![
            Statement::new(GUARD_MASTER_KEY, [user_id.into(), master.map(String::as_str).into()]),
            Statement::new(GUARD_NAMES, [user_id.into(), names.into()]),
        ];
        if keys.contains_key(&Usage::Master) {
            statements.push(Statement::new(DROP, [user_id.into()]));
            statements.push(Statement::new(DROP_OWN_SIGNATURES, [user_id.into()]));
        }
        statements.extend(keys.iter().map(|(usage, key)| {
            let key = key.object().to_text();
            Statement::new(PUT_CROSS_SIGNING_KEY, [user_id.into(), usage.as_str().into(), key.into()])
        }));
        const TOLD: [Usage; 2] = [Usage::Master, Usage::SelfSigning];
        let kept = Some(before).filter(|_| !keys.contains_key(&Usage::Master));
        let now = |usage| keys.get(&usage).or_else(|| kept?.get(&usage)).map(CrossSigningKey::object);
        let change = if TOLD.iter().any(|usage| keys.contains_key(usage)) {
            let [master, self_signing] = TOLD.map(now);
            KeyChange::CrossSigning(master, self_signing)
        } else {
            KeyChange::Private
        };
        match self.change_keys(own, user, change, statements).await {
            Err(error) if Race::OtherMasterKey.has_lost(&error) => Ok(KeysPut::OtherMaster),
            Err(error) if Race::DeviceOfThatName.has_lost(&error) => Ok(KeysPut::NamesDevice),
            told => told.map(KeysPut::Done),
        }
    }

    /// Adds signatures of a local user, and returns the servers that are to be told. Signatures on their own keys are told to
    /// those who share a room, others to themselves alone.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn add_signatures(
        &self,
        own: &ServerName,
        signer: &UserId,
        signatures: &[NewSignature],
    ) -> Result<Vec<ServerName>, DatabaseError> {
        let list: Vec<_> = signatures
            .iter()
            .map(|NewSignature { user_id, key_name, key_id, signature }| json!([user_id, key_name, key_id, signature]))
            .collect();
        let put = Statement::new(PUT_SIGNATURES, [signer.as_str().into(), json!(list).to_string().into()]);
        match signatures.iter().find(|signature| signature.user_id == signer.as_str()) {
            Some(of_own) => self.change_keys(own, signer, KeyChange::Devices(&of_own.key_name), vec![put]).await,
            None => self.batch(vec![put, device_lists::advance(signer.as_str())]).await.map(|_| Vec::new()),
        }
    }
}

/// What of local users' keys, and of signatures on those of `remote`, is read first; [`read_keys`] reads the answers.
fn key_reads(wanted: &BTreeMap<String, Vec<String>>, remote: &[String], reader: KeyReader<'_>) -> Vec<Statement> {
    let devices: Vec<_> = wanted
        .iter()
        .flat_map(|(user, devices)| {
            let all = devices.is_empty().then(|| json!([user, null]));
            all.into_iter().chain(devices.iter().map(move |device| json!([user, device])))
        })
        .collect();
    let local = json_list(wanted.keys().map(String::as_str));
    let everybody = json_list(wanted.keys().chain(remote).map(String::as_str));
    vec![
        Statement::new(DEVICE_KEYS, [json!(devices).to_string().into()]),
        Statement::new(CROSS_SIGNING_KEYS, [local.into()]),
        Statement::new(SIGNATURES, [everybody.into(), reader.user().into()]),
    ]
}

/// Reads the answers to [`key_reads`].
fn read_keys(answers: &mut Answers, reader: KeyReader<'_>) -> Result<KeysFound, DatabaseError> {
    let mut next = || answers.rows();
    let (device_rows, cross_signing_rows, signature_rows) = (next()?, next()?, next()?);
    let mut found = KeysFound::default();
    for row in &signature_rows {
        let [user_id, signer, key_name] = [0, 1, 2].map(|column| row.text(column).map(str::to_owned));
        let [key_id, signature] = [3, 4].map(|column| row.text(column).map(str::to_owned));
        let (user_id, signer, key_name) = (user_id?, signer?, key_name?);
        found.signatures.push(SignatureOn { user_id, signer, key_name, key_id: key_id?, signature: signature? });
    }
    let mut local: BTreeMap<String, UserKeys> = BTreeMap::new();
    for row in &device_rows {
        let mut keys = device_lists::object(row, 2)?;
        if let (KeyReader::User(_), Some(name)) = (reader, row.optional_text(3)?) {
            keys.object_at("unsigned").insert("device_display_name", name);
        }
        let of = local.entry(row.text(0)?.to_owned()).or_default();
        of.devices.insert(row.text(1)?.to_owned(), keys);
    }
    for row in &cross_signing_rows {
        let Some(usage) = Usage::parse(row.text(1)?) else { continue };
        if usage == Usage::UserSigning && reader.user() != Some(row.text(0)?) {
            continue;
        }
        let of = local.entry(row.text(0)?.to_owned()).or_default();
        of.cross_signing.insert(usage, device_lists::object(row, 2)?);
    }
    for (user_id, keys) in local {
        found.insert(user_id, keys);
    }
    Ok(found)
}
