//! Room versions: one table that says, for each, which rule set applies to what.
//!
//! Spec: rooms, versions 1 to 12. A new version is one more row of [`TABLE`], and one more variant or flag for what
//! is new in it. The rules themselves are elsewhere in [`super`]; they ask the row, never the version's number.

/// What one room version prescribes.
#[derive(Debug)]
pub struct RoomVersion {
    /// The identifier, such as `12`.
    pub id: &'static str,
    /// Event format: where event ids come from, and with them the form of `auth_events` and `prev_events`.
    pub event_ids: EventIds,
    /// Redaction algorithm: which keys stay.
    pub redaction: Redaction,
    /// State resolution algorithm.
    pub state_resolution: StateResolution,
    /// Canonical JSON is enforced: integers within ±(2^53 - 1), no floats (6 on).
    pub strict_json: bool,
    /// A signing key's `valid_until_ts` must reach to the event's `origin_server_ts` (5 on). That a key must not have expired
    /// before holds for all.
    pub enforce_key_validity: bool,
    /// A string of more than 255 bytes but at most 255 characters drops the event (11 on); before, Synapse let
    /// such events into rooms, so they are kept as rejected.
    pub strict_byte_limits: bool,
    /// `m.room.aliases` has its own auth rule (1-5).
    pub aliases_auth_rule: bool,
    /// `m.room.redaction` has its own auth rule, the redact level (1-2); from 3 on that decides only whether
    /// the redaction is applied.
    pub redaction_auth_rule: bool,
    /// Auth rules guard `notifications` in power levels as they do `events` (6 on).
    pub notifications_auth_rule: bool,
    /// Membership and join rule `knock` (7 on).
    pub knock: bool,
    /// Join rule `restricted`, with `join_authorised_via_users_server` countersigned (8 on).
    pub restricted: bool,
    /// Join rule `knock_restricted` (10 on).
    pub knock_restricted: bool,
    /// Power levels must be integers, not strings that look like one (10 on).
    pub integer_power_levels: bool,
    /// The creator is the create event's `sender`, and `content.creator` is not needed (11 on).
    pub creator_is_sender: bool,
    /// `redacts` stands in the redaction's `content` (11 on), not at its top level.
    pub redacts_in_content: bool,
    /// The room id is the create event's hash; the create event has no `room_id` and never stands in
    /// `auth_events` (12 on).
    pub room_id_is_create_hash: bool,
    /// Creators, `content.additional_creators` among them, outrank every power level (12 on).
    pub privileged_creators: bool,
}

/// Where event ids come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventIds {
    /// The event carries its id, `$local:server`, and refers to others by pairs of id and hash (1-2).
    Given,
    /// Reference hash in standard base64 (3).
    HashBase64,
    /// Reference hash in URL-safe base64 (4 on).
    HashUrlSafe,
}

/// Redaction algorithms, named by the version that began each; they only ever came to keep more or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Redaction {
    /// The first (1-5).
    V1,
    /// `aliases` no longer kept (6-7).
    V6,
    /// `allow` of join rules kept (8).
    V8,
    /// `join_authorised_via_users_server` kept (9-10).
    V9,
    /// Whole create content, `redacts`, `invite`, `third_party_invite.signed` kept; `origin`, `membership`, `prev_state` not (11 on).
    V11,
}

/// State resolution algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateResolution {
    /// The first (1).
    V1,
    /// Reverse topological power ordering and mainline (2-11).
    V2,
    /// As 2, from an empty state and with the conflicted state subgraph (12 on).
    V2_1,
}

impl RoomVersion {
    /// The row of the version with this identifier.
    pub fn get(id: &str) -> Option<&'static Self> {
        TABLE.iter().copied().find(|version| version.id == id)
    }

    /// All versions that this server knows, oldest first.
    pub fn all() -> &'static [&'static Self] {
        &TABLE
    }
}

impl PartialEq for RoomVersion {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for RoomVersion {}

impl std::fmt::Display for RoomVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}

const TABLE: [&RoomVersion; 12] = [&V1, &V2, &V3, &V4, &V5, &V6, &V7, &V8, &V9, &V10, &V11, &V12];

const V1: RoomVersion = RoomVersion {
    id: "1",
    event_ids: EventIds::Given,
    redaction: Redaction::V1,
    state_resolution: StateResolution::V1,
    strict_json: false,
    enforce_key_validity: false,
    strict_byte_limits: false,
    aliases_auth_rule: true,
    redaction_auth_rule: true,
    notifications_auth_rule: false,
    knock: false,
    restricted: false,
    knock_restricted: false,
    integer_power_levels: false,
    creator_is_sender: false,
    redacts_in_content: false,
    room_id_is_create_hash: false,
    privileged_creators: false,
};
const V2: RoomVersion = RoomVersion { id: "2", state_resolution: StateResolution::V2, ..V1 };
const V3: RoomVersion = RoomVersion { id: "3", event_ids: EventIds::HashBase64, redaction_auth_rule: false, ..V2 };
const V4: RoomVersion = RoomVersion { id: "4", event_ids: EventIds::HashUrlSafe, ..V3 };
const V5: RoomVersion = RoomVersion { id: "5", enforce_key_validity: true, ..V4 };
const V6: RoomVersion = RoomVersion {
    id: "6",
    redaction: Redaction::V6,
    strict_json: true,
    aliases_auth_rule: false,
    notifications_auth_rule: true,
    ..V5
};
const V7: RoomVersion = RoomVersion { id: "7", knock: true, ..V6 };
const V8: RoomVersion = RoomVersion { id: "8", redaction: Redaction::V8, restricted: true, ..V7 };
const V9: RoomVersion = RoomVersion { id: "9", redaction: Redaction::V9, ..V8 };
const V10: RoomVersion = RoomVersion { id: "10", knock_restricted: true, integer_power_levels: true, ..V9 };
const V11: RoomVersion = RoomVersion {
    id: "11",
    redaction: Redaction::V11,
    strict_byte_limits: true,
    creator_is_sender: true,
    redacts_in_content: true,
    ..V10
};
const V12: RoomVersion = RoomVersion {
    id: "12",
    state_resolution: StateResolution::V2_1,
    room_id_is_create_hash: true,
    privileged_creators: true,
    ..V11
};
