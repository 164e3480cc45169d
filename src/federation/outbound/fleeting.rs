//! Telling other servers what is worth nothing when it is late: typing, receipts, presence (Server-Server API, "EDUs").
//!
//! Each transaction of these travels alone, beside what the transaction queue sends, and is not repeated; it costs no row.
//! Whom the database knows to be away is not among the destinations that callers name.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, future, stream};

use crate::{
    federation::peers::fleeting::{FleetingEdu, anywhere},
    log::LogRecord,
    matrix::{
        edu::Presence,
        identifiers::{RoomId, ServerName, UserId},
    },
    platform::{Budget, DatabaseError},
    server::Server,
    store::{
        edus::Audience,
        presence::{OwnPresence, PresenceDue, PresenceRow},
        presence_hearers::PresencePlace,
    },
};

/// How many destinations are told at the same time: the platform keeps six connections open for an event.
const CONCURRENT: usize = 5;

/// For so long, in milliseconds, users are there after a sync that says so.
const SYNCED_MS: i64 = 6 * 60 * 1_000;

/// How many users' presence ends in one call to the database.
const AT_ONCE: i64 = 10;

/// How many users of other servers end in one call to the database: nobody need be told of them.
const ENDED_AT_ONCE: i64 = 100;

/// Others are told again of those who are there after so many milliseconds: they take somebody of whom they have heard nothing for half
/// an hour to be gone, as Synapse does, which itself repeats it after the same time.
const AGAIN_MS: i64 = 25 * 60 * 1_000;

/// Where there was no time to tell all of them, they are told again after so many milliseconds: the user is not gone for them by then. Not in
/// the next minute: where there is never time for all, it would be sent to those who have heard it over and over.
const SOONER_MS: i64 = 3 * 60 * 1_000;

/// The most users whose presence is repeated in one run of the scheduled trigger: what waits for one destination may be about so many.
const MAX_AGAIN: i64 = 100;

/// For so long, in milliseconds, sending goes on; what is left then is stale.
const TURN_MS: i64 = 20_000;

impl Server {
    /// Who hears what a local user does in a room: of its other servers those whose turn it is, where there are many.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn audience(&self, room_id: &RoomId, user: &UserId, now: i64) -> Result<Audience, DatabaseError> {
        let turns = &self.fleeting.turns;
        let after = turns.after(room_id.as_str(), self.random_part(), now);
        let own = &self.config.server_name;
        let audience = self.store.audience(own, room_id, user, now, &after).await?;
        turns.told(room_id.as_str(), after, audience.last.as_ref().map(ToString::to_string), now);
        Ok(audience)
    }

    /// Notes the presence of a local user, and tells it, if it is news, the servers that share a room with them. Where there are many,
    /// those whose turn it is hear when the user comes, and all that follows until they have gone.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_presence(&self, row: &PresenceRow, now: i64) -> Result<(), DatabaseError> {
        self.put_presence_until(&[(row.clone(), None)], now).await
    }

    /// Notes what the sync of a client has its user be, for as long as it goes on to sync ([`Server::sweep_presence`]).
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_presence_of_sync(&self, user: &UserId, presence: Presence, now: i64) -> Result<(), DatabaseError> {
        let until = now + SYNCED_MS;
        if self.store.stays(user, presence, until, now).await? {
            return Ok(());
        }
        let status_msg = self.store.presence(user, user).await?.and_then(|(row, _)| row.status_msg);
        let row = PresenceRow {
            user_id: user.clone(),
            presence,
            status_msg,
            last_active_ts: now,
            currently_active: presence == Presence::Online,
        };
        self.put_presence_until(&[(row, Some(until))], now).await
    }

    /// Ends the presence of users whose syncs have stopped, or makes them idle, and of those of whom their servers tell nothing more; and
    /// tells other servers again who is there. Called by the scheduled trigger.
    pub async fn sweep_presence(&self, budget: &Budget) {
        let now = self.platform.clock.now_ms();
        let told_ts = now - AGAIN_MS;
        let mut left = MAX_AGAIN;
        // They are told when all is noted: asking the database where servers are must not use up the calls for it.
        let mut again = Vec::new();
        let outcome = async {
            while !budget.is_spent() {
                let most = AT_ONCE.min(left);
                let due = self.store.presence_due(now, AT_ONCE, told_ts, most, ENDED_AT_ONCE).await?;
                let PresenceDue { gone, told_long_ago, ended } = due;
                let is_full = |count, most| i64::try_from(count).is_ok_and(|count| count >= most);
                let may_be_more = is_full(gone.len(), AT_ONCE)
                    || is_full(told_long_ago.len(), AT_ONCE)
                    || is_full(ended, ENDED_AT_ONCE);
                left -= i64::try_from(told_long_ago.len()).unwrap_or(left);
                let ended = gone.into_iter().map(|(row, idle_until)| {
                    let presence = if idle_until.is_some() { Presence::Unavailable } else { Presence::Offline };
                    (PresenceRow { presence, currently_active: false, ..row }, idle_until)
                });
                let ended: Vec<_> = ended.collect();
                self.put_presence_until(&ended, now).await?;
                again.retain(|(row, _): &(PresenceRow, _)| ended.iter().all(|(gone, _)| gone.user_id != row.user_id));
                again.extend(self.store.tell_again(&self.config.server_name, &told_long_ago, told_ts, now).await?);
                if !may_be_more {
                    break;
                }
            }
            Ok::<_, DatabaseError>(())
        };
        if let Err(error) = outcome.await {
            self.platform.log.write(LogRecord::error("presence cannot be looked through").because(&error));
        }
        self.tell_again(again, now);
    }

    /// Tells again who is there. Those of whom there was no time to tell all servers are due anew in a few minutes.
    fn tell_again(&self, again: Vec<(PresenceRow, Vec<ServerName>)>, now: i64) {
        let told = again.iter().map(|(row, servers)| (&**servers, FleetingEdu::StillThere(row.update(now))));
        let (server, unsent) = (self.clone(), self.leave_each(told));
        if unsent.is_empty() {
            return;
        }
        self.platform.background.spawn(Box::pin(async move {
            let missed = server.send_what_was_left(unsent).await;
            let is_missed = |servers: &[ServerName]| servers.iter().any(|server| missed.contains(server));
            let users = again.iter().filter(|(_, servers)| is_missed(servers)).map(|(row, _)| &row.user_id);
            if let Err(error) = server.store.tell_sooner(users, now, now - AGAIN_MS + SOONER_MS).await {
                server.platform.log.write(LogRecord::error("presence cannot be told sooner").because(&error));
            }
        }));
    }

    /// Notes the presence of local users, each until when it holds without a further sync, if it is by one.
    async fn put_presence_until(&self, users: &[(PresenceRow, Option<i64>)], now: i64) -> Result<(), DatabaseError> {
        let begin = anywhere(self.random_part());
        let begin = PresencePlace { room: format!("!{begin}"), server: begin };
        let own = users.iter().map(|(row, until)| OwnPresence { row, synced_until: *until, begin: &begin });
        let heard = self.store.put_presence(&self.config.server_name, &own.collect::<Vec<_>>(), now).await?;
        let (mut told, mut news) = (Vec::new(), Vec::new());
        for ((row, _), heard) in users.iter().zip(heard) {
            let Some(heard) = heard else { continue };
            news.push((heard.servers, FleetingEdu::Presence(row.update(now))));
            let last = heard.last.filter(|_| row.presence != Presence::Offline);
            told.extend(last.map(|last| (&row.user_id, last)));
        }
        self.send_beside(self.leave_each(news.iter().map(|(servers, edu)| (&**servers, edu.clone()))));
        self.store.told(&told).await
    }

    /// Tells the servers of a room that a local user has joined, beside the request, whether the user is there: those whose turn it is, where
    /// there are many.
    pub fn tell_presence_in(&self, room_id: &RoomId, user: &UserId) {
        let (server, room_id, user) = (self.counted_apart(), room_id.clone(), user.clone());
        self.platform.background.spawn(Box::pin(async move {
            let now = server.platform.clock.now_ms();
            let outcome = async {
                let found = server.store.presence(&user, &user).await?;
                let Some((row, _)) = found.filter(|(row, _)| row.presence != Presence::Offline) else { return Ok(()) };
                let audience = server.audience(&room_id, &user, now).await?;
                server.tell(&audience.servers, &[FleetingEdu::Presence(row.update(now))]);
                Ok::<_, DatabaseError>(())
            };
            if let Err(error) = outcome.await {
                server.platform.log.write(LogRecord::error("presence cannot be read").because(&error));
            }
        }));
    }

    /// Tells these servers, beside the request that it comes from.
    pub fn tell(&self, destinations: &[ServerName], edus: &[FleetingEdu]) {
        let now = self.platform.clock.now_ms();
        let mut unsent = destinations.to_vec();
        unsent.retain(|destination| self.fleeting.leave(destination, edus, now));
        self.send_beside(unsent);
    }

    /// Leaves several things, each for servers of its own: whoever hears of many of them hears of all together. To which of them nobody
    /// is sending.
    fn leave_each<'a>(&self, told: impl Iterator<Item = (&'a [ServerName], FleetingEdu)>) -> Vec<ServerName> {
        let mut edus: BTreeMap<&ServerName, Vec<FleetingEdu>> = BTreeMap::new();
        for (servers, edu) in told {
            servers.iter().for_each(|server| edus.entry(server).or_default().push(edu.clone()));
        }
        let now = self.platform.clock.now_ms();
        edus.retain(|destination, edus| self.fleeting.leave(destination, edus, now));
        edus.into_keys().cloned().collect()
    }

    /// Sends to these destinations what was left for them, beside the request that it comes from.
    fn send_beside(&self, unsent: Vec<ServerName>) {
        if unsent.is_empty() {
            return;
        }
        let server = self.clone();
        self.platform.background.spawn(Box::pin(async move { drop(server.send_what_was_left(unsent).await) }));
    }

    /// Sends to these destinations what was left for them. For which of them there was no time.
    async fn send_what_was_left(&self, unsent: Vec<ServerName>) -> BTreeSet<ServerName> {
        let until = self.platform.clock.now_ms() + TURN_MS;
        let unsent = self.in_turn(unsent);
        self.federation.look_up(&unsent).await;
        let tell = async |destination| (!self.tell_one(&destination, until).await).then_some(destination);
        let missed = stream::iter(unsent).map(tell).buffer_unordered(CONCURRENT);
        missed.filter_map(future::ready).collect().await
    }

    /// Sends to one destination until nothing waits for it, or it fails, or the time is over; unless somebody else does. Whether there
    /// was time.
    async fn tell_one(&self, destination: &ServerName, until: i64) -> bool {
        let (clock, slow) = (&self.platform.clock, &self.fleeting.slow);
        let now = clock.now_ms();
        if now >= until {
            return false;
        }
        if !self.fleeting.begin(destination, now) {
            return true;
        }
        while let Some(pause) = self.fleeting.pause(destination, clock.now_ms()) {
            if pause > 0 {
                clock.sleep(pause).await;
            }
            let now = clock.now_ms();
            if now >= until {
                self.fleeting.leave_off(destination);
                return false;
            }
            let edus = self.fleeting.take(destination, now);
            if edus.is_empty() {
                return true;
            }
            slow.begin(destination, now);
            let sent = self.federation.send_fleeting(destination, &self.random_id(), now, &edus).await;
            slow.end(destination, clock.now_ms());
            if let Err(error) = sent {
                let record = LogRecord::warning("a server was not told who is typing, reading or there");
                self.platform.log.write(record.destination(destination).because(&error));
                self.fleeting.failed(destination, clock.now_ms());
                return true;
            }
        }
        true
    }
}
