//! Writing a commit: it is one atomic batch, which aborts when another commit moved the room first, and which is safe to
//! repeat when its answer was lost.

use serde_json::json;

use super::{
    Store,
    altered::{is_altered, unsettle_altered},
    commit::{
        CommitPos, Committed, Filled, Guard, NewEvent, Outgoing, PassedOver, Place, Redaction, RejectedAt, RoomCommit,
        Unsettled,
    },
    ended_joins::put_out,
    event_graph::closed,
    event_text::hash_wrong,
    history_visibility, json_lists, kept_for_strangers,
    known_keys::keep_keys_of,
    memberships::change,
    new_shares,
    positions::{advance, advance_timeline, count, from_end},
    presence,
    races::Race,
    rejected, relations,
    resolution::cite,
    staging::woken,
    state_sql,
    unsettled::{claim_beside, forget_claims, may_stand, place_rejected, unsettle},
};
use crate::{
    matrix::{
        identifiers::{EventId, RoomId, ServerName},
        room_version::EventIds,
        state_content::Membership,
    },
    platform::{Clock, DatabaseError, Rows, Statement, news::Subject, turns::turn},
};

/// Aborts the batch when the room's version has moved: `version` is NOT NULL, and CASE yields NULL.
const MOVE_ROOM: &str = "\
    UPDATE rooms SET version = CASE version WHEN ?2 THEN ?2 + 1 END, extremities = ?3, state = ?4, \
      latest_pos = CASE WHEN ?5 THEN (SELECT position FROM streams WHERE name = 'events') ELSE latest_pos END, \
      outbox_pos = CASE WHEN ?6 THEN (SELECT position FROM streams WHERE name = 'outbox') ELSE outbox_pos END, \
      joined = ?7 + CASE WHEN ?9 THEN 0 ELSE joined END, invited = ?8 + CASE WHEN ?9 THEN 0 ELSE invited END, \
      joined_pos = CASE WHEN ?10 THEN (SELECT position FROM streams WHERE name = 'events') ELSE joined_pos END \
    WHERE room_id = ?1";

/// Aborts the batch when the room's version has moved, and leaves it as it is.
const HOLD_ROOM: &str = "UPDATE rooms SET version = CASE version WHEN ?2 THEN ?2 END WHERE room_id = ?1";

/// Aborts the batch when the room exists already: `room_id` is the primary key.
const NEW_ROOM: &str = "\
    INSERT INTO rooms (room_id, room_version, version, extremities, state, latest_pos, outbox_pos, joined, invited, joined_pos) \
    SELECT ?1, ?2, 1, ?3, ?4, s.position, (SELECT position FROM streams WHERE name = 'outbox'), ?5, ?6, \
      CASE WHEN ?7 THEN s.position ELSE 0 END FROM streams AS s WHERE s.name = 'events'";

/// Whether what is thought of an event `events` that is held gives way to what `excluded` says.
macro_rules! knows_better {
    () => {
        "((events.state_after IS NULL OR events.outlier OR events.claimed) \
          AND (NOT excluded.outlier OR excluded.state_after IS NOT NULL))"
    };
}

/// Takes over what `excluded` says of this column, if it knows better.
macro_rules! better {
    ($column:literal) => {
        concat!($column, " = CASE WHEN ", knows_better!(), " THEN excluded.", $column, " ELSE events.", $column, " END")
    };
}

/// ?1: a list of rows, each with how far from the end of the stream the event stands, or else its position, if it goes to the
/// timeline. An event that is held without its content gets it, whatever else is thought of it, if (?3) its ID says that it is the
/// same event; else [`COMPLETE`] alone does that.
const EVENTS: &str = concat!(
    "INSERT INTO events (event_id, room_id, event_type, state_key, sender, depth, origin_server_ts, json, outlier, \
      claimed, soft_failed, state_before, state_after, hash_wrong, pos) \
    SELECT value ->> 0, ?2, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, \
      value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, \
      COALESCE(value ->> 14, (SELECT position FROM streams WHERE name = 'events') - (value ->> 13)) \
    FROM json_each(?1) WHERE true \
     ON CONFLICT (event_id) DO UPDATE SET \
       json = CASE WHEN ?3 AND events.hash_wrong > excluded.hash_wrong THEN excluded.json ELSE events.json END, \
       hash_wrong = CASE WHEN ?3 THEN MIN(events.hash_wrong, excluded.hash_wrong) ELSE events.hash_wrong END, \
       outlier = MIN(events.outlier, excluded.outlier), \
       pos = COALESCE(excluded.pos, events.pos), ",
    better!("claimed"),
    ", ",
    // Nothing that has a position is hidden.
    "soft_failed = CASE WHEN excluded.pos IS NOT NULL OR ",
    knows_better!(),
    " THEN excluded.soft_failed ELSE events.soft_failed END, ",
    better!("state_before"),
    ", ",
    better!("state_after"),
    " WHERE (?3 AND events.hash_wrong > excluded.hash_wrong) OR excluded.pos IS NOT NULL OR ",
    knows_better!()
);

/// ?1: a list of [event id, text], of copies that complete what is held.
const COMPLETE: &str = "\
    UPDATE events SET json = (SELECT value ->> 1 FROM json_each(?1) WHERE value ->> 0 = events.event_id), hash_wrong = 0 \
    WHERE event_id IN (SELECT value ->> 0 FROM json_each(?1)) AND room_id = ?2 AND hash_wrong";

/// After [`EVENTS`]. ?1: the ids of events that go to the timeline.
const TIMELINE: &str = "\
    INSERT INTO timeline (room_id, pos, event_nid) \
    SELECT ?2, e.pos, e.event_nid FROM json_each(?1) AS j CROSS JOIN events AS e ON e.event_id = j.value";

const MOVE_GAP: &str = "UPDATE OR REPLACE gaps SET pos = ?3 WHERE room_id = ?1 AND pos = ?2 AND attempts = 0";

/// ?1: a list of event ids.
const REACHED: &str = "DELETE FROM gaps WHERE room_id = ?2 AND event_id IN (SELECT value FROM json_each(?1))";

/// ?1: a list of [event id, position, how often, when again].
const PASSED_OVER: &str = "\
    INSERT INTO gaps (room_id, pos, event_id, attempts, retry_at) \
    SELECT ?2, value ->> 1, value ->> 0, value ->> 2, value ->> 3 FROM json_each(?1) WHERE true \
    ON CONFLICT (room_id, pos, event_id) DO UPDATE SET attempts = excluded.attempts, retry_at = excluded.retry_at";

const CLOSE_GAPS: &str = concat!("DELETE FROM gaps AS g WHERE g.room_id = ?1 AND ", closed!());

/// ?1: a list of [event id, how far from the end of the stream, or else position, events passed over].
const GAPS: &str = "\
    INSERT INTO gaps (room_id, pos, event_id, passed) \
    SELECT ?2, COALESCE(value ->> 2, (SELECT position FROM streams WHERE name = 'events') - (value ->> 1)), value ->> 0, \
      value ->> 3 FROM json_each(?1) WHERE true ON CONFLICT (room_id, pos, event_id) DO NOTHING";

/// An event belongs before all that lead to it. The gaps are gone through once, not once for each of them.
const OLDEST_GAPS: &str = "\
    DELETE FROM gaps WHERE room_id = ?1 AND (event_id, pos) NOT IN \
      (SELECT oldest.event_id, MIN(oldest.pos) FROM gaps AS oldest WHERE oldest.room_id = ?1 GROUP BY oldest.event_id)";

/// ?1: a list of [how far from the end of the stream, trie root].
const STATES: &str = "\
    INSERT INTO room_states (room_id, pos, state) \
    SELECT ?2, (SELECT position FROM streams WHERE name = 'events') - (value ->> 0), value ->> 1 \
    FROM json_each(?1) WHERE true \
    ON CONFLICT (room_id, pos) DO UPDATE SET state = excluded.state";

/// ?1: a list of [event id, how far from the end of the stream, excluded server].
const OUTBOX: &str = "\
    INSERT INTO outbox (pos, room_id, event_nid, exclude) \
    SELECT (SELECT position FROM streams WHERE name = 'outbox') - (value ->> 1), ?2, e.event_nid, value ->> 2 \
    FROM json_each(?1) JOIN events AS e ON e.event_id = value ->> 0";

/// ?1: a list of [server, how far from the end of the stream]. A stretch of one position, for a server that is not in the room.
const ALSO: &str = "\
    INSERT INTO room_servers (room_id, server, from_pos, to_pos, joined) \
    SELECT ?2, value ->> 0, s.position - (value ->> 1) - 1, s.position - (value ->> 1), 0 \
    FROM json_each(?1) JOIN streams AS s ON s.name = 'outbox' WHERE NOT EXISTS \
      (SELECT 1 FROM room_servers AS r WHERE r.room_id = ?2 AND r.server = value ->> 0 AND r.to_pos IS NULL) \
    ON CONFLICT (room_id, server, from_pos) DO UPDATE SET to_pos = excluded.to_pos";

/// ?1: a list of [server, users more]. That they are in the list is said twice: otherwise all servers that were ever in the room
/// would be read.
const JOINED: &str = "\
    UPDATE room_servers SET joined = joined + (change.value ->> 1), \
      to_pos = CASE WHEN joined + (change.value ->> 1) <= 0 THEN (SELECT position FROM streams WHERE name = 'outbox') END \
    FROM json_each(?1) AS change \
    WHERE room_id = ?2 AND server IN (SELECT value ->> 0 FROM json_each(?1)) \
      AND server = change.value ->> 0 AND to_pos IS NULL";

/// ?1: a list of [server, users more]. After [`JOINED`]: a server without an open stretch gets one. A stretch that was
/// closed at this very position is opened again.
const SERVERS: &str = "\
    INSERT INTO room_servers (room_id, server, from_pos, to_pos, joined) \
    SELECT ?2, value ->> 0, (SELECT position FROM streams WHERE name = 'outbox'), NULL, value ->> 1 FROM json_each(?1) \
    WHERE value ->> 1 > 0 AND NOT EXISTS \
      (SELECT 1 FROM room_servers AS s WHERE s.room_id = ?2 AND s.server = value ->> 0 AND s.to_pos IS NULL) \
    ON CONFLICT (room_id, server, from_pos) DO UPDATE SET to_pos = NULL, joined = excluded.joined";

const CLOSE_SERVERS: &str = "\
    UPDATE room_servers SET to_pos = (SELECT position FROM streams WHERE name = 'outbox') \
    WHERE room_id = ?1 AND to_pos IS NULL";

/// After the room's row: where the room is in the published room directory.
const PUBLISHED: &str = "\
    UPDATE published_rooms SET joined = (SELECT r.joined FROM rooms AS r WHERE r.room_id = ?1) WHERE room_id = ?1";

const REDACTIONS: &str = "\
    INSERT INTO redactions (redacts, redaction_id, room_id, any_sender, server) \
    SELECT value ->> 0, value ->> 1, ?2, value ->> 2, value ->> 3 FROM json_each(?1) WHERE true \
    ON CONFLICT (redacts, redaction_id) DO NOTHING";

/// ?1: ids of events that were written or redacted. Only those of them that a redaction names are looked at.
const REDACT: &str = "\
    UPDATE events SET redacted_by = (SELECT r.redaction_id FROM redactions AS r WHERE r.redacts = events.event_id \
      AND r.room_id = events.room_id AND (r.any_sender OR substr(events.sender, instr(events.sender, ':') + 1) = r.server)) \
    WHERE event_id IN (SELECT r.redacts FROM json_each(?1) AS touched CROSS JOIN redactions AS r ON r.redacts = touched.value) \
      AND redacted_by IS NULL AND event_type <> 'm.room.create' \
      AND EXISTS (SELECT 1 FROM redactions AS r WHERE r.redacts = events.event_id AND r.room_id = events.room_id \
        AND (r.any_sender OR substr(events.sender, instr(events.sender, ':') + 1) = r.server))";

/// ?1: a list of [event id, whether it was judged by an altered copy]. A whole copy that waits is judged all the same then.
const UNSTAGE: &str = "\
    DELETE FROM staged_pdus WHERE room_id = ?2 AND event_id IN (SELECT value ->> 0 FROM json_each(?1)) \
      AND (hash_wrong OR event_id IN (SELECT value ->> 0 FROM json_each(?1) WHERE NOT value ->> 1))";

impl Store {
    /// Commits what `commits` say, and `others` with them, as one batch.
    ///
    /// # Errors
    /// Where the database fails. [`DatabaseError::Constraint`] is a fault of ours; a lost race is not.
    pub async fn commit(&self, commits: &[RoomCommit], others: Vec<Statement>) -> Result<Committed, DatabaseError> {
        Ok(self.commit_and_wake(commits, others, Vec::new()).await?.map(drop))
    }

    /// As [`Store::commit`], and then `waking`, each made by [`wake`](super::staging::wake): the rooms in which staged PDUs can be
    /// looked at now.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn commit_and_wake(
        &self,
        commits: &[RoomCommit],
        mut others: Vec<Statement>,
        waking: Vec<Statement>,
    ) -> Result<Committed<Vec<RoomId>>, DatabaseError> {
        let mut statements = Vec::new();
        commits.iter().for_each(|commit| commit.statements(&mut statements));
        statements.append(&mut others);
        let first = statements.len();
        statements.extend(waking);
        if statements.is_empty() {
            return Ok(Committed::Done(Vec::new()));
        }
        Ok(match committed(self.batch(statements).await)? {
            Committed::Done(answers) => {
                let woken = answers.iter().skip(first).map(woken).filter_map(Result::transpose);
                Committed::Done(woken.collect::<Result<_, _>>()?)
            }
            Committed::Lost => Committed::Lost,
        })
    }

    /// Commits what `commits` say one after the other, and `others` at last; others have their turn in between. For what counts
    /// for nothing until something refers to it: no commit is guarded by the room's version.
    ///
    /// # Errors
    /// As [`Store::commit`]; some of them may then have taken effect.
    pub async fn commit_apart(
        &self,
        clock: &dyn Clock,
        commits: &[RoomCommit],
        others: Vec<Statement>,
    ) -> Result<Committed, DatabaseError> {
        let mut batches = Vec::new();
        for commit in commits {
            turn(clock, batches.len(), 1).await;
            let mut statements = Vec::new();
            commit.statements(&mut statements);
            batches.push(statements);
        }
        batches.push(others);
        batches.retain(|batch| !batch.is_empty());
        Ok(committed(self.batches(batches).await)?.map(drop))
    }
}

/// The answers, unless the race was lost.
fn committed(outcome: Result<Vec<Rows>, DatabaseError>) -> Result<Committed<Vec<Rows>>, DatabaseError> {
    match outcome {
        Ok(answers) => Ok(Committed::Done(answers)),
        Err(error) if Race::OF_COMMITS.iter().any(|race| race.has_lost(&error)) => Ok(Committed::Lost),
        Err(error) => Err(error),
    }
}

impl RoomCommit {
    fn statements(&self, statements: &mut Vec<Statement>) {
        let room_id = self.room_id.as_str();
        let newest: Vec<&NewEvent> = self.events.iter().filter(|new| new.place == Place::Newest).collect();
        let outgoing: Vec<(&NewEvent, &Outgoing)> =
            self.events.iter().filter_map(|new| Some((new, new.outbox.as_ref()?))).collect();
        // A position for what sync must notice even where no event is new in the timeline.
        let positions = newest.len().max(1);
        let notice = !newest.is_empty() || !self.states.is_empty() || !self.memberships.is_empty();
        if notice {
            let room = Subject::Room(room_id.to_owned());
            let users = self.memberships.iter().map(|change| Subject::User(change.user_id.to_string()));
            statements.push(advance_timeline(positions, [room].into_iter().chain(users)));
        }
        if !outgoing.is_empty() {
            statements.push(advance("outbox", count(outgoing.len())));
        }
        statements.extend(self.guard_statement(notice, !outgoing.is_empty()));
        let nodes = self.nodes.iter().map(|(id, node)| json!([id.to_string(), node]).to_string());
        statements.extend(json_lists(nodes).into_iter().map(|list| Statement::new(state_sql::INSERT, [list.into()])));
        // Before what the commit brings, which may rest on a claim of its own.
        if let Some(extremities) = &self.forgets_claims {
            statements.extend(forget_claims(&self.room_id, extremities));
        }
        statements.extend(cite(self.events.iter().map(|new| &new.event)));
        statements.extend(keep_keys_of(self.events.iter().map(|new| &new.event)));
        statements.extend(history_visibility::note(&self.room_id, self.events.iter().map(|new| &new.event)));
        let mut later = newest.len();
        let rows = self.events.iter().map(|new| {
            let at = match new.place {
                Place::Newest => {
                    later -= 1;
                    Some(CommitPos::FromEnd(later))
                }
                Place::Filled(pos) => Some(CommitPos::At(pos)),
                Place::Outlier | Place::Edge | Place::Hidden => None,
            };
            event_row(new, at)
        });
        let bound = self.room_version.event_ids != EventIds::Given;
        for list in json_lists(rows) {
            statements.push(Statement::new(EVENTS, [list.into(), room_id.into(), bound.into()]));
        }
        let mut each = |sql: &'static str, items: Vec<String>| {
            for list in json_lists(items) {
                statements.push(Statement::new(sql, [list.into(), room_id.into()]));
            }
        };
        each(
            COMPLETE,
            self.copies.iter().map(|event| json!([event.event_id().as_str(), event.json()]).to_string()).collect(),
        );
        let placed = self.events.iter().filter(|new| new.is_in_timeline());
        each(TIMELINE, placed.map(|new| json!(new.event.event_id().as_str()).to_string()).collect());
        let last = outgoing.len();
        let outgoing = outgoing.iter().enumerate();
        let also = outgoing.clone().filter_map(|(i, (_, outgoing))| Some((outgoing.also.as_ref()?, last - 1 - i)));
        let also = also.map(|(server, before_last)| json!([server.as_str(), before_last]).to_string()).collect();
        each(
            OUTBOX,
            outgoing
                .map(|(i, (new, outgoing))| {
                    let exclude = outgoing.exclude.as_ref().map(ServerName::as_str);
                    json!([new.event.event_id().as_str(), last - 1 - i, exclude]).to_string()
                })
                .collect(),
        );
        each(ALSO, also);
        let states = self.states.iter();
        each(STATES, states.map(|from| json!([from_end(from.later), from.state.to_string()]).to_string()).collect());
        each(REDACTIONS, self.redactions.iter().map(redaction_row).collect());
        if !self.joins_anew {
            statements.extend(put_out(&self.room_id, &self.memberships));
        }
        statements.extend(change(&self.room_id, &self.memberships));
        statements.extend(presence::follow(self.memberships.iter().map(|change| change.user_id.as_str())));
        if self.joins_anew {
            statements.push(Statement::new(CLOSE_SERVERS, [room_id.into()]));
        }
        let joined: Vec<_> =
            self.joined.iter().map(|(server, change)| json!([server.as_str(), change]).to_string()).collect();
        for list in json_lists(joined) {
            statements.push(Statement::new(JOINED, [list.as_str().into(), room_id.into()]));
            statements.push(Statement::new(SERVERS, [list.into(), room_id.into()]));
        }
        if self.joins_anew || !self.joined.is_empty() {
            statements.push(Statement::new(PUBLISHED, [room_id.into()]));
        }
        let users = self.memberships.iter().filter(|change| change.membership == Membership::Join);
        let users = users.map(|change| change.user_id.as_str());
        statements.extend(new_shares::note(&self.room_id, users, positions, self.comes_in()));
        // Of a room that we know, any event may be one whose redaction came before it.
        let known = self.guard != Guard::New;
        let new = self.events.iter().filter(|new| known || new.place == Place::Newest);
        let touched = new
            .map(|new| new.event.event_id().as_str())
            .chain(self.redactions.iter().map(|redaction| redaction.redacts.as_str()));
        for list in json_lists(touched.map(|id| json!(id).to_string())) {
            statements.push(Statement::new(REDACT, [list.into()]));
        }
        self.relations(statements);
        let judged = self.events.iter().filter(|new| !new.place.is_outlier()).map(|new| &new.event);
        let judged = judged.chain(self.rejected.iter().map(|rejected| &rejected.event));
        let judged = judged.map(|event| json!([event.event_id().as_str(), hash_wrong(event)]).to_string());
        for list in json_lists(judged) {
            statements.push(Statement::new(UNSTAGE, [list.into(), room_id.into()]));
        }
        self.rejections(statements);
        self.gaps(statements);
        statements.extend(kept_for_strangers::keep(&self.room_id, &self.kept_for));
    }

    /// After all that redacts events and gives them places.
    fn relations(&self, statements: &mut Vec<Statement>) {
        let room_id = &self.room_id;
        statements.extend(relations::relate(room_id, self.events.iter().map(|new| &new.event).chain(&self.copies)));
        let redacted = self.redactions.iter().map(|redaction| redaction.redacts.as_str());
        statements.extend(relations::part_redacted(room_id, redacted));
        statements.extend(relations::part(room_id, self.unplaced.iter().map(EventId::as_str)));
    }

    fn rejections(&self, statements: &mut Vec<Statement>) {
        statements.extend(rejected::forget(&self.readmitted));
        statements.extend(rejected::remember(&self.room_id, &self.rejected));
        statements.extend(may_stand(&self.unplaced, true));
        statements.extend(rejected::unplace(&self.room_id, &self.unplaced));
        for RejectedAt { event_id, state_before, claimed } in &self.rejected_at {
            statements.push(place_rejected(event_id, &state_before.to_string(), *claimed));
        }
        statements.extend(self.beside.iter().map(|(event_id, root)| claim_beside(&self.room_id, event_id, *root)));
        let altered = self.events.iter().any(is_altered).then_some(Unsettled::Claimed);
        let why = self.unsettled.max(altered).filter(|_| !self.is_settling);
        statements.extend(why.map(|why| unsettle(&self.room_id, why)));
        statements.extend(self.comes_in().then(|| unsettle_altered(&self.room_id)));
    }

    /// Whether we come into the room by it. Who else is in a room that was joined in part becomes known later.
    fn comes_in(&self) -> bool {
        self.joins_anew && self.events.iter().any(|new| new.place == Place::Newest)
    }

    fn guard_statement(&self, notice: bool, has_outgoing: bool) -> Option<Statement> {
        let room_id = self.room_id.as_str();
        let extremities: Vec<_> =
            self.extremities.iter().map(|one| json!([one.event_id.as_str(), one.depth])).collect();
        let (extremities, state) = (json!(extremities).to_string(), self.state.to_string());
        let joined: i64 = self.joined.iter().map(|(_, change)| change).sum();
        let comes_in = self.comes_in();
        match self.guard {
            Guard::New => Some(Statement::new(
                NEW_ROOM,
                [
                    room_id.into(),
                    self.room_version.id.into(),
                    extremities.into(),
                    state.into(),
                    joined.into(),
                    self.invited.into(),
                    comes_in.into(),
                ],
            )),
            Guard::Moves(version) => Some(Statement::new(
                MOVE_ROOM,
                [
                    room_id.into(),
                    version.into(),
                    extremities.into(),
                    state.into(),
                    notice.into(),
                    has_outgoing.into(),
                    joined.into(),
                    self.invited.into(),
                    self.joins_anew.into(),
                    comes_in.into(),
                ],
            )),
            Guard::Holds(version) => Some(Statement::new(HOLD_ROOM, [room_id.into(), version.into()])),
            Guard::Free => None,
        }
    }

    fn gaps(&self, statements: &mut Vec<Statement>) {
        let room_id = self.room_id.as_str();
        if let Some(Filled { from, to, reached, passed }) = &self.filled {
            let lists = json_lists(reached.iter().map(|id| json!(id.as_str()).to_string()));
            statements.extend(lists.into_iter().map(|list| Statement::new(REACHED, [list.into(), room_id.into()])));
            statements.push(Statement::new(MOVE_GAP, [room_id.into(), (*from).into(), (*to).into()]));
            statements.push(Statement::new(CLOSE_GAPS, [room_id.into()]));
            let rows = passed.iter().map(|passed| {
                let PassedOver { event_id, pos, attempts, retry_at } = passed;
                json!([event_id.as_str(), pos, attempts, retry_at]).to_string()
            });
            let lists = json_lists(rows);
            statements.extend(lists.into_iter().map(|list| Statement::new(PASSED_OVER, [list.into(), room_id.into()])));
        }
        let rows = self.missing.iter().map(|missing| {
            let [from_end, pos] = missing.before.to_json();
            json!([missing.event_id.as_str(), from_end, pos, missing.passed]).to_string()
        });
        let lists = json_lists(rows);
        if lists.is_empty() && self.forgets_claims.is_none() {
            return;
        }
        statements.extend(lists.into_iter().map(|list| Statement::new(GAPS, [list.into(), room_id.into()])));
        statements.push(Statement::new(OLDEST_GAPS, [room_id.into()]));
    }
}

fn redaction_row(redaction: &Redaction) -> String {
    let any_sender = i64::from(redaction.any_sender);
    json!([redaction.redacts, redaction.redaction_id.as_str(), any_sender, redaction.server.as_str()]).to_string()
}

fn event_row(new: &NewEvent, at: Option<CommitPos>) -> String {
    let event = &new.event;
    let [from_end, pos] = at.map_or([None, None], CommitPos::to_json);
    json!([
        event.event_id().as_str(),
        event.event_type(),
        event.state_key(),
        event.sender().as_str(),
        event.depth(),
        event.origin_server_ts(),
        event.json(),
        i64::from(new.place.is_outlier()),
        i64::from(new.claimed),
        i64::from(new.soft_failed),
        new.state_before.map(|root| root.to_string()),
        new.state_after.map(|root| root.to_string()),
        hash_wrong(event),
        from_end,
        pos,
    ])
    .to_string()
}
