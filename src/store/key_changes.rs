//! Changes of local users' keys: in one batch with what makes them they are noted for syncs, and put into the queue for the other
//! servers that share a room with the user.

use super::{Store, positions::advance_for, queue::names};
use crate::{
    matrix::{
        edu::EduType,
        identifiers::{ServerName, UserId},
        json::{Object, Value},
        state_content::Membership,
    },
    platform::{DatabaseError, Statement, news::Subject},
};

/// What changes.
#[derive(Debug, Clone, Copy)]
pub(super) enum KeyChange<'a> {
    /// The keys of a device; `None` where it is deleted.
    Device(&'a str, Option<&'a Object>),
    /// The keys of several devices, or what else belongs to them, of which one is named: other servers ask for the whole list.
    Devices(&'a str),
    /// The cross-signing keys that others see.
    CrossSigning(Option<&'a Object>, Option<&'a Object>),
    /// What other servers are not told.
    Private,
}

/// ?2: whether a device has changed, which other servers hear of by number.
const CHANGED: &str = "\
    INSERT INTO device_list_changes (user_id, pos, stream_id) \
    SELECT ?1, position, CASE WHEN ?2 THEN position END FROM streams WHERE name = 'device_lists' \
    ON CONFLICT (user_id) DO UPDATE SET pos = excluded.pos, \
      prev_id = CASE WHEN ?2 THEN device_list_changes.stream_id ELSE prev_id END, \
      stream_id = COALESCE(excluded.stream_id, device_list_changes.stream_id)";

/// The other servers that share a room with the user ?1. ?2: this server's name.
macro_rules! sharing {
    () => {
        "SELECT DISTINCT s.server FROM local_memberships AS m \
           CROSS JOIN room_servers AS s ON s.room_id = m.room_id AND s.to_pos IS NULL \
         WHERE m.user_id = ?1 AND m.membership = 'join' AND s.server <> ?2"
    };
}

/// What waits to tell of the same user gives way to ?3, a type of EDU; but not what is in flight.
const SUPERSEDE: &str = concat!(
    "DELETE FROM edu_outbox WHERE (destination, pos) IN ( \
       SELECT o.destination, o.pos FROM (",
    sharing!(),
    ") AS w LEFT JOIN destinations AS d ON d.destination = w.server \
         CROSS JOIN edu_outbox AS o ON o.destination = w.server AND o.pos > COALESCE(d.txn_edus, 0) \
       WHERE o.about = ?1 AND o.edu_type = ?3)"
);

/// ?4: the content. Where it is a device's, it gets its number and the one before it; with ?5 one before it that nobody has heard of.
const TELL: &str = concat!(
    "INSERT INTO edu_outbox (destination, pos, edu_type, about, content) \
     SELECT w.server, q.position + row_number() OVER (ORDER BY w.server), ?3, ?1, \
       CASE ?3 WHEN 'm.device_list_update' THEN json_set(?4, '$.stream_id', c.stream_id, '$.prev_id', \
         json(CASE WHEN ?5 THEN json_array(c.stream_id - 1) WHEN c.prev_id IS NULL THEN '[]' ELSE json_array(c.prev_id) END)) \
       ELSE ?4 END \
     FROM (",
    sharing!(),
    ") AS w CROSS JOIN streams AS q ON q.name = 'edu_outbox' CROSS JOIN device_list_changes AS c ON c.user_id = ?1 \
     RETURNING destination"
);

const ADVANCE: &str = concat!(
    "UPDATE streams SET position = position + (SELECT count(*) FROM (",
    sharing!(),
    ")) WHERE name = 'edu_outbox'"
);

impl Store {
    /// Makes a change of a local user's keys by `statements`, and returns the servers that are to be told.
    ///
    /// # Errors
    /// Where the database fails.
    pub(super) async fn change_keys(
        &self,
        own: &ServerName,
        user: &UserId,
        change: KeyChange<'_>,
        mut statements: Vec<Statement>,
    ) -> Result<Vec<ServerName>, DatabaseError> {
        let rooms = self.rooms_of(user, Membership::Join).await?;
        let subjects = rooms.into_iter().map(|room| Subject::Room(room.to_string()));
        let subjects = subjects.chain([Subject::User(user.to_string())]);
        let is_device = matches!(change, KeyChange::Device(..) | KeyChange::Devices(_));
        let is_gap = matches!(change, KeyChange::Devices(_));
        // A number is left out where others are to notice that they lack something.
        statements.push(advance_for("device_lists", if is_gap { 2 } else { 1 }, subjects));
        statements.push(Statement::new(CHANGED, [user.as_str().into(), is_device.into()]));
        let Some((edu_type, content)) = change.edu(user) else {
            return self.batch(statements).await.map(|_| Vec::new());
        };
        let sharing = || [user.as_str().into(), own.as_str().into(), edu_type.as_str().into()];
        let [of, without, kind] = sharing();
        statements.extend([
            Statement::new(SUPERSEDE, sharing()),
            Statement::new(TELL, [of, without, kind, content.to_text().into(), is_gap.into()]),
            Statement::new(ADVANCE, [user.as_str().into(), own.as_str().into()]),
        ]);
        let answers = self.batch(statements).await?;
        answers.iter().rev().nth(1).map_or(Ok(Vec::new()), names)
    }
}

impl KeyChange<'_> {
    /// What other servers are told, but for the numbers.
    fn edu(self, user: &UserId) -> Option<(EduType, Object)> {
        let mut content = Object::from_iter([("user_id", Value::from(user))]);
        match self {
            Self::Private => return None,
            Self::CrossSigning(master, self_signing) => {
                for (name, key) in [("master_key", master), ("self_signing_key", self_signing)] {
                    key.into_iter().for_each(|key| drop(content.insert(name, key.clone())));
                }
                return Some((EduType::SigningKeyUpdate, content));
            }
            Self::Device(device, Some(keys)) => {
                content.insert("device_id", device);
                content.insert("keys", keys.clone());
            }
            Self::Device(device, None) => {
                content.insert("device_id", device);
                content.insert("deleted", true);
            }
            Self::Devices(device) => {
                content.insert("device_id", device);
            }
        }
        Some((EduType::DeviceListUpdate, content))
    }
}
