//! The devices of local users: each is one login.

use super::{Store, json_list, key_changes::KeyChange, lacking, races::Race};
use crate::{
    matrix::identifiers::{ServerName, UserId},
    platform::{DatabaseError, SqlValue, Statement},
};

/// A device as its user sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its ID.
    pub device_id: String,
    /// What the user calls it.
    pub display_name: Option<String>,
}

/// Which devices of a user.
#[derive(Debug, Clone, Copy)]
pub(super) enum Devices<'a> {
    /// All of them.
    All,
    /// These.
    These(&'a [&'a str]),
    /// All others.
    AllBut(&'a str),
}

/// That a row is of one of these devices: ?1 user, ?2 a list of devices, NULL for all, ?3 one that is none of them.
macro_rules! of_devices {
    () => {
        "user_id = ?1 AND (?2 IS NULL OR device_id IN (SELECT value FROM json_each(?2))) AND device_id IS NOT ?3"
    };
}

/// Which of the devices have published keys.
const WITH_KEYS: &str = concat!("SELECT device_id FROM device_keys WHERE ", of_devices!());

/// ?4: those of them that are known to have. Breaks a constraint where another has: `keys` is NOT NULL.
const NO_OTHERS: &str = concat!(
    "UPDATE device_keys SET keys = NULL WHERE ",
    of_devices!(),
    " AND device_id NOT IN (SELECT value FROM json_each(?4))"
);

/// How often it is tried to delete devices while one after the other of them publishes keys. The last attempt takes them all.
const ATTEMPTS: usize = 10;

const DELETE_KEY_SIGNATURES: &str = concat!(
    "DELETE FROM key_signatures WHERE user_id = ?1 AND signer = ?1 AND key_name IN (SELECT device_id FROM device_keys WHERE ",
    of_devices!(),
    ")"
);
const DELETE_DEVICE_KEYS: &str = concat!("DELETE FROM device_keys WHERE ", of_devices!());
const DELETE_ONE_TIME_KEYS: &str = concat!("DELETE FROM one_time_keys WHERE ", of_devices!());
const DELETE_FALLBACK_KEYS: &str = concat!("DELETE FROM fallback_keys WHERE ", of_devices!());
const DELETE_TO_DEVICE_MESSAGES: &str = concat!("DELETE FROM to_device_messages WHERE ", of_devices!());
const DELETE_SENT_TO_DEVICE: &str = concat!("DELETE FROM sent_to_device WHERE ", of_devices!());
const DELETE_CLIENT_TRANSACTIONS: &str = concat!("DELETE FROM client_transactions WHERE ", of_devices!());
const DELETE_DEHYDRATED_DEVICES: &str = concat!("DELETE FROM dehydrated_devices WHERE ", of_devices!());
const DELETE_DEVICES: &str = concat!("DELETE FROM devices WHERE ", of_devices!());

/// What goes with devices, and then they themselves.
const DELETIONS: [&str; 9] = [
    DELETE_KEY_SIGNATURES,
    DELETE_DEVICE_KEYS,
    DELETE_ONE_TIME_KEYS,
    DELETE_FALLBACK_KEYS,
    DELETE_TO_DEVICE_MESSAGES,
    DELETE_SENT_TO_DEVICE,
    DELETE_CLIENT_TRANSACTIONS,
    DELETE_DEHYDRATED_DEVICES,
    DELETE_DEVICES,
];

impl Store {
    /// The devices of a user, or one of them.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn devices(&self, user_id: &str, device_id: Option<&str>) -> Result<Vec<Device>, DatabaseError> {
        const SELECT: &str = "SELECT device_id, display_name FROM devices \
             WHERE user_id = ?1 AND (?2 IS NULL OR device_id = ?2) ORDER BY device_id";
        let rows = self.query(Statement::new(SELECT, [user_id.into(), device_id.into()])).await?;
        rows.iter()
            .map(|row| {
                let display_name = row.optional_text(1)?.map(str::to_owned);
                Ok(Device { device_id: row.text(0)?.to_owned(), display_name })
            })
            .collect()
    }

    /// Gives a device another name. Those who share a room hear of it where the device has keys. `false` where there is no such
    /// device.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn rename_device(
        &self,
        own: &ServerName,
        user: &UserId,
        device_id: &str,
        name: &str,
    ) -> Result<bool, DatabaseError> {
        const UPDATE: &str =
            "UPDATE devices SET display_name = ?3 WHERE user_id = ?1 AND device_id = ?2 RETURNING device_id";
        let user_id = user.as_str();
        let parameters = [user_id.into(), device_id.into(), name.into()];
        let answers = self
            .batch(vec![
                Statement::new(UPDATE, parameters),
                Statement::new(WITH_KEYS, Devices::These(&[device_id]).of(user_id)),
            ])
            .await?;
        let [renamed, with_keys] = answers.as_slice() else { return Err(lacking()) };
        if !with_keys.is_empty() {
            self.change_keys(own, user, KeyChange::Private, Vec::new()).await?;
        }
        Ok(!renamed.is_empty())
    }

    /// Deletes devices of a user, or all of them, with their access tokens and keys. Those who share a room hear of it where one
    /// of them had keys: returns the servers that are to be told.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn delete_devices(
        &self,
        own: &ServerName,
        user: &UserId,
        device_ids: Option<&[&str]>,
    ) -> Result<Vec<ServerName>, DatabaseError> {
        let devices = device_ids.map_or(Devices::All, Devices::These);
        self.delete_devices_after(Vec::new(), own, user, devices).await
    }

    /// As [`Store::delete_devices`], in one batch with `first`, and not where that fails.
    pub(super) async fn delete_devices_after(
        &self,
        first: Vec<Statement>,
        own: &ServerName,
        user: &UserId,
        devices: Devices<'_>,
    ) -> Result<Vec<ServerName>, DatabaseError> {
        for _ in 1..ATTEMPTS {
            match self.try_to_delete(first.clone(), own, user, devices, false).await {
                Err(error) if Race::KeysPublished.has_lost(&error) => {}
                told => return told,
            }
        }
        self.try_to_delete(first, own, user, devices, true).await
    }

    /// Deletes devices, unless one of them publishes keys meanwhile: of these somebody may have heard. With `in_any_case` they go
    /// nevertheless, and others are to ask for the whole list.
    async fn try_to_delete(
        &self,
        first: Vec<Statement>,
        own: &ServerName,
        user: &UserId,
        devices: Devices<'_>,
        in_any_case: bool,
    ) -> Result<Vec<ServerName>, DatabaseError> {
        let of_user = devices.of(user.as_str());
        let had_keys = self.query(Statement::new(WITH_KEYS, of_user.clone())).await?;
        let had_keys = had_keys.iter().map(|row| row.text(0)).collect::<Result<Vec<_>, _>>()?;
        let mut statements = first;
        if !in_any_case {
            let known = json_list(had_keys.iter().copied());
            statements
                .push(Statement::new(NO_OTHERS, of_user.iter().cloned().chain([known.into()]).collect::<Vec<_>>()));
        }
        statements.extend(DELETIONS.into_iter().map(|sql| Statement::new(sql, of_user.clone())));
        let change = match had_keys.as_slice() {
            [] => return self.batch(statements).await.map(|_| Vec::new()),
            [one] if !in_any_case => KeyChange::Device(one, None),
            [one, ..] => KeyChange::Devices(one),
        };
        self.change_keys(own, user, change, statements).await
    }
}

impl Devices<'_> {
    /// The parameters ?1 to ?3 of `of_devices!`.
    fn of(self, user_id: &str) -> [SqlValue; 3] {
        let (list, but) = match self {
            Self::All => (None, None),
            Self::These(ids) => (Some(json_list(ids.iter().copied())), None),
            Self::AllBut(id) => (None, Some(id)),
        };
        [user_id.into(), list.into(), but.into()]
    }
}
