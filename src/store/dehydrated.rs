//! The dehydrated devices of local users.

use super::{Store, lacking, positions::ToDevicePos, races::Race, to_device};
use crate::{
    platform::{DatabaseError, Statement},
    store::to_device::Inbox,
};

/// A dehydrated device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DehydratedDevice {
    /// Its ID.
    pub device_id: String,
    /// What its user needs to use it, as JSON.
    pub device_data: String,
}

/// ?3: what no access token has as its hash. Where two requests of one user make the same device, it is there already.
const PUT_DEVICE: &str = "\
    INSERT INTO devices (user_id, device_id, token_hash, display_name, created_ts) VALUES (?1, ?2, ?3, ?4, ?5) \
    ON CONFLICT (user_id, device_id) DO NOTHING";

/// Breaks a constraint where another dehydrated device has come: `device_id` is NOT NULL.
const GUARD: &str = "\
    INSERT INTO dehydrated_devices (user_id, device_id, device_data) SELECT ?1, NULL, '' \
    WHERE EXISTS (SELECT 1 FROM dehydrated_devices AS d WHERE d.user_id = ?1 AND d.device_id <> ?2)";

const PUT: &str = "INSERT OR REPLACE INTO dehydrated_devices (user_id, device_id, device_data) VALUES (?1, ?2, ?3)";

impl Store {
    /// The dehydrated device of a user.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn dehydrated_device(&self, user_id: &str) -> Result<Option<DehydratedDevice>, DatabaseError> {
        const SELECT: &str = "SELECT device_id, device_data FROM dehydrated_devices WHERE user_id = ?1";
        let rows = self.query(Statement::new(SELECT, [user_id.into()])).await?;
        let text = |column| rows.first().map(|row| row.text(column).map(str::to_owned)).transpose();
        Ok(text(0)?.zip(text(1)?).map(|(device_id, device_data)| DehydratedDevice { device_id, device_data }))
    }

    /// Gives a user a dehydrated device, where there is no other device of this ID. `false` where there is another dehydrated one.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_dehydrated_device(
        &self,
        user_id: &str,
        device: &DehydratedDevice,
        display_name: Option<&str>,
        now_ms: i64,
    ) -> Result<bool, DatabaseError> {
        let id = device.device_id.as_str();
        // A hash has neither a space nor such a length.
        let token_hash = format!("none: the dehydrated device {id} of {user_id}");
        let row = [user_id.into(), id.into(), token_hash.into(), display_name.into(), now_ms.into()];
        let statements = vec![
            Statement::new(GUARD, [user_id.into(), id.into()]),
            Statement::new(PUT_DEVICE, row),
            Statement::new(PUT, [user_id.into(), id.into(), device.device_data.as_str().into()]),
        ];
        match self.batch(statements).await {
            Err(error) if Race::OtherDehydrated.has_lost(&error) => Ok(false),
            put => put.map(|_| true),
        }
    }

    /// What waits for a device after the position `since`; what is not after it has been taken and goes.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn inbox(&self, user_id: &str, device_id: &str, since: ToDevicePos) -> Result<Inbox, DatabaseError> {
        let answers = self.batch(to_device::inbox(user_id, device_id, since).into()).await?;
        to_device::read_inbox(answers.last().ok_or_else(lacking)?)
    }
}
