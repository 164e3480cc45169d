//! Events that are made here: by local users, and templates of events for the users of other servers.
//!
//! Client-Server API, "Creation" and "Sending events to a room"; Server-Server API, "Signing Events", "Auth events
//! selection", `make_join` and its kin.

use super::{
    Draft, Room, RoomError, Rooms,
    judge::{Judgement, Source},
    policy::policy_key,
    view::{StateAt, TypeAndKey, View, type_and_key},
};
use crate::{
    matrix::{
        auth_events, auth_rules,
        event::{Event, MAX_OWN_EVENT_BYTES, MAX_PREV_EVENTS, PduError},
        identifiers::{EventId, RoomId, UserId},
        json::{Object, Value},
        room_version::{EventIds, RoomVersion},
        state_content::Membership,
        state_trie::NodeId,
    },
    platform::{DatabaseError, Statement},
    store::{
        commit::{Committed, Guard, RoomCommit},
        ended_joins::end_joins,
        positions::TimelinePos,
        rooms::Extent,
    },
};

/// The greatest depth that canonical JSON can say.
const MAX_DEPTH: i64 = (1 << 53) - 1;

/// A room that a local user creates: its version, what its create event says, and the events that follow.
#[derive(Debug, Clone)]
pub struct NewRoom {
    /// The room version.
    pub version: &'static RoomVersion,
    /// The content of the create event, without `room_version` and (where the version has one) `creator`.
    pub create_content: Object,
    /// The events after the create event, in order; the first is the creator's join.
    pub drafts: Vec<Draft>,
}

/// What became of a change in several rooms.
#[derive(Debug, Clone, Default)]
pub struct ChangedRooms {
    /// Where there is a new event.
    pub changed: Vec<RoomId>,
    /// Where the rules forbid it, and why.
    pub forbidden: Vec<(RoomId, String)>,
}

/// An event that is made but for its hashes and signatures, and the state by which it is allowed.
struct Proto {
    object: Object,
    state: Vec<Event>,
    before: StateAt,
}

/// Refuses what the rules forbid in the state before it, or in the current state where that is another one: not all forward
/// extremities are cited where they are very many.
async fn allowed(
    view: &mut View<'_>,
    judgement: &Judgement,
    event: &Event,
    state: &[Event],
    before: StateAt,
) -> Result<(), RoomError> {
    let broken = match auth_rules::check(event, state) {
        Ok(()) => judgement.forbidden_now(view, event, before).await?,
        Err(error) => Some(error.to_string()),
    };
    broken.map_or(Ok(()), |why| Err(RoomError::NotAllowed(why)))
}

impl Rooms {
    /// Makes an event of a local user and commits it. The caller starts the sending.
    ///
    /// # Errors
    /// [`RoomError::NotAllowed`] where the room's rules forbid it, [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn send(&self, room_id: &RoomId, sender: &UserId, draft: Draft) -> Result<Event, RoomError> {
        self.send_with(room_id, sender, draft, |_| Vec::new(), async || Ok(false), async || Ok(false)).await
    }

    /// As [`Rooms::send`], with further statements in the same atomic batch: what the caller must remember if and only if
    /// the event is committed. `is_repetition` is asked when another commit came first: the same request may have made it.
    /// `is_duplicate` is asked of the room as it is when the event is committed, or not.
    ///
    /// # Errors
    /// As [`Rooms::send`]; [`RoomError::Busy`] also for a repetition, at once; [`RoomError::Duplicate`].
    pub async fn send_with(
        &self,
        room_id: &RoomId,
        sender: &UserId,
        draft: Draft,
        others: impl Fn(&Event) -> Vec<Statement>,
        is_repetition: impl AsyncFn() -> Result<bool, DatabaseError>,
        is_duplicate: impl AsyncFn() -> Result<bool, DatabaseError>,
    ) -> Result<Event, RoomError> {
        let mut is_first = true;
        self.until_committed(async || {
            if !std::mem::take(&mut is_first) && is_repetition().await? {
                return Err(RoomError::Busy);
            }
            let mut view = View::new(&self.store, self.server_name());
            let room = self.read_for_draft(&mut view, room_id, sender, &draft).await?;
            if let Some(same) = self.same_state(&mut view, &room, sender, &draft).await? {
                return Ok(Committed::Done(same));
            }
            let mut judgement = Judgement::new(room);
            let event = self.append(&mut view, &mut judgement, sender, &draft).await?;
            // After the room was read: whatever comes between has the commit fail.
            if is_duplicate().await? {
                return Err(RoomError::Duplicate);
            }
            let commit = self.commit_of(&mut view, judgement).await?;
            let mut others = others(&event);
            others.extend(self.put_out(&event).iter().flat_map(|user| end_joins(user, room_id)));
            let committed = self.store.commit(&[commit], others).await?;
            Ok(committed.with(event))
        })
        .await
    }

    /// Changes the membership event of a local user in each of `rooms` that they are joined to, where `change` has another
    /// content for it: one read and one commit for all of them. `change` is asked for anew whenever the rooms have been read: a
    /// commit that comes between has this one fail, so that what it is made from is never older than what the rooms were told
    /// before. A room whose rules forbid it is left out. Returns the rooms in which there is a new event, and those that were left
    /// out with the reason. The caller starts the sending.
    ///
    /// # Errors
    /// [`RoomError::Busy`] where one of the rooms changed again and again meanwhile; where the database fails.
    pub async fn change_member<C: Fn(&Event) -> Option<Object>>(
        &self,
        rooms: &[RoomId],
        user: &UserId,
        change: impl AsyncFn() -> Result<C, DatabaseError>,
    ) -> Result<ChangedRooms, RoomError> {
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let read = self.rooms_for_draft(&mut view, rooms.to_vec(), user, &joined(user, Object::new())).await?;
            let change = change().await?;
            let (mut changed, mut commits) = (ChangedRooms::default(), Vec::new());
            for room in read {
                let room_id = room.room_id.clone();
                let member = view.state(room.state, &[type_and_key("m.room.member", user.as_str())]).await?.pop();
                let member = member.filter(|member| member.membership() == Some(Membership::Join));
                let Some(content) = member.and_then(|member| change(&member)) else { continue };
                let mut judgement = Judgement::new(room);
                match self.append(&mut view, &mut judgement, user, &joined(user, content)).await {
                    Ok(_) => {}
                    Err(RoomError::NotAllowed(why)) => {
                        changed.forbidden.push((room_id, why));
                        continue;
                    }
                    Err(RoomError::Unsigned(why)) => {
                        changed.forbidden.push((room_id, why.to_string()));
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                commits.push(self.commit_of(&mut view, judgement).await?);
                changed.changed.push(room_id);
            }
            if commits.is_empty() {
                return Ok(Committed::Done(changed));
            }
            Ok(self.store.commit(&commits, Vec::new()).await?.with(changed))
        })
        .await
    }

    /// The event of the current state that `draft` would only repeat: of the same sender, with the same content.
    async fn same_state(
        &self,
        view: &mut View<'_>,
        room: &Room,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<Option<Event>, RoomError> {
        let Some(state_key) = &draft.state_key else { return Ok(None) };
        if draft.redacts.is_some() {
            // What it redacts stands beside the content in most room versions.
            return Ok(None);
        }
        let current = view.stored_state(room.state, &[type_and_key(&draft.event_type, state_key)]).await?;
        let same = current.into_iter().find(|stored| {
            let event = &stored.event;
            stored.redacted_by.is_none() && event.sender() == sender && *event.content() == draft.content
        });
        Ok(same.map(|stored| stored.event.clone()))
    }

    /// Makes and signs an event of a local user without committing it: an invite, which the invited user's server must
    /// sign too. [`Rooms::commit_signed`] commits it.
    ///
    /// # Errors
    /// As [`Rooms::send`].
    pub async fn draft_event(&self, room_id: &RoomId, sender: &UserId, draft: &Draft) -> Result<Event, RoomError> {
        let mut view = View::new(&self.store, self.server_name());
        let room = self.read_for_draft(&mut view, room_id, sender, draft).await?;
        let mut judgement = Judgement::new(room);
        self.append(&mut view, &mut judgement, sender, draft).await
    }

    /// Commits an event of a local user that [`Rooms::draft_event`] made, with whatever signatures it got since.
    ///
    /// # Errors
    /// As [`Rooms::send`].
    pub async fn commit_signed(&self, event: &Event) -> Result<(), RoomError> {
        self.commit_one(event, &Source::PassOn { given_by: None }).await.map(|_| ())
    }

    /// An unsigned event for another server's user, with its place in the room filled in: what `make_join`, `make_leave`
    /// and `make_knock` answer with.
    ///
    /// # Errors
    /// As [`Rooms::send`].
    pub async fn template(
        &self,
        room_id: &RoomId,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<(Object, &'static RoomVersion), RoomError> {
        let mut view = View::new(&self.store, self.server_name());
        let room = self.read_for_draft(&mut view, room_id, sender, draft).await?;
        let version = room.room_version;
        let judgement = Judgement::new(room);
        let mut proto = self.propose(&mut view, &judgement, sender, draft).await?;
        // Of who makes the template, as the schemas of `make_join` and the like want it.
        proto.object.insert("origin", self.server_name().as_str());
        // The rules judge an event; signing it here is the way to have one, and the signature goes nowhere.
        let event =
            Event::create(proto.object.clone(), version, self.server_name().as_str(), &self.config.signing_key)?;
        allowed(&mut view, &judgement, &event, &proto.state, proto.before).await?;
        Ok((proto.object, version))
    }

    /// Creates a room with all its first events in one commit. From room version 12 on a room's ID is the hash of its create
    /// event: where one user creates two rooms in the same millisecond, which would be one, the second waits for the next.
    ///
    /// # Errors
    /// As [`Rooms::send`]; [`RoomError::NotAllowed`] names the first event that the rules forbid.
    pub async fn create(&self, creator: &UserId, new: &NewRoom) -> Result<(RoomId, Vec<Event>), RoomError> {
        self.until_committed(async || self.try_create(creator, new).await).await
    }

    async fn try_create(&self, creator: &UserId, new: &NewRoom) -> Result<Committed<(RoomId, Vec<Event>)>, RoomError> {
        let version = new.version;
        let mut view = View::new(&self.store, self.server_name());
        let create = self.create_event(creator, new)?;
        if let Err(error) = auth_rules::check_auth_event_list(&create, |_| None) {
            return Err(RoomError::NotAllowed(error.to_string()));
        }
        let room = Room {
            room_id: create.room_id().clone(),
            room_version: version,
            version: 0,
            extremities: Vec::new(),
            state: NodeId::EMPTY,
            latest_pos: TimelinePos::START,
            local_joined: 0,
            extent: Extent::Whole,
        };
        let room_id = room.room_id.clone();
        let mut judgement = Judgement::new(room);
        let source = Source::PassOn { given_by: None };
        judgement.take(&mut view, &create, StateAt { root: NodeId::EMPTY, claimed: false }, false, &source).await?;
        let mut events = vec![create];
        for draft in &new.drafts {
            events.push(self.append(&mut view, &mut judgement, creator, draft).await?);
        }
        // Nobody else is in the room yet.
        judgement.new.iter_mut().for_each(|new| new.outbox = None);
        let commit = RoomCommit { guard: Guard::New, ..self.commit_of(&mut view, judgement).await? };
        Ok(self.store.commit(&[commit], Vec::new()).await?.with((room_id, events)))
    }

    fn create_event(&self, creator: &UserId, new: &NewRoom) -> Result<Event, RoomError> {
        let version = new.version;
        let mut content = new.create_content.clone();
        content.insert("room_version", version.id);
        if !version.creator_is_sender {
            content.insert("creator", creator.as_str());
        }
        let mut object = Object::new();
        object.insert("type", "m.room.create");
        object.insert("state_key", "");
        object.insert("sender", creator.as_str());
        object.insert("content", Value::Object(content));
        object.insert("auth_events", Value::Array(Vec::new()));
        object.insert("prev_events", Value::Array(Vec::new()));
        object.insert("depth", 1);
        object.insert("origin_server_ts", self.clock.now_ms());
        if !version.room_id_is_create_hash {
            object.insert("room_id", format!("!{}:{}", self.random_name(), self.server_name()));
        }
        self.give_id(&mut object, version);
        Ok(Event::create(object, version, self.server_name().as_str(), &self.config.signing_key)?)
    }

    /// Makes the event of `draft`, checks it, and takes it into the judgement.
    async fn append(
        &self,
        view: &mut View<'_>,
        judgement: &mut Judgement,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<Event, RoomError> {
        let version = judgement.room.room_version;
        let proto = self.propose(view, judgement, sender, draft).await?;
        let event = Event::create(proto.object, version, self.server_name().as_str(), &self.config.signing_key)?;
        allowed(view, judgement, &event, &proto.state, proto.before).await?;
        let event = self.signed_by_policy(judgement, view, event).await?;
        if event.json().len() > MAX_OWN_EVENT_BYTES {
            // The policy server's signature counts too.
            return Err(PduError::TooLarge("event").into());
        }
        let source = Source::PassOn { given_by: None };
        judgement.take(view, &event, proto.before, false, &source).await?;
        Ok(event)
    }

    /// Gives `draft` its place at the end of the room.
    async fn propose(
        &self,
        view: &mut View<'_>,
        judgement: &Judgement,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<Proto, RoomError> {
        let version = judgement.room.room_version;
        // The newest stand last: what was sent from here is cited by what is sent next.
        let older = judgement.extremities.len().saturating_sub(MAX_PREV_EVENTS);
        let extremities = judgement.extremities.get(older..).unwrap_or_default();
        let previous: Vec<EventId> = extremities.iter().map(|one| one.event_id.clone()).collect();
        view.load_events(&previous).await?;
        let states: Vec<StateAt> = previous.iter().filter_map(|id| view.state_after(id)).collect();
        let root = if older == 0 {
            judgement.state
        } else {
            view.resolve(&judgement.room, states.iter().map(|state| state.root).collect())
                .await?
                .unwrap_or(judgement.state)
        };
        let before = StateAt { root, claimed: states.iter().any(|state| state.claimed) };
        let selected = selection(version, sender, draft);
        let mut keys = selected.clone();
        if version.room_id_is_create_hash {
            keys.push(type_and_key("m.room.create", ""));
        }
        let state = view.state(root, &keys).await?;
        if judgement.room.extent == Extent::Partial {
            let is_there = |user: &str| state.iter().any(|event| event.is_state("m.room.member", user));
            let mut members = selected.iter().filter(|(event_type, _)| event_type == "m.room.member");
            if !members.all(|(_, user)| is_there(user)) {
                // Whoever it is about may be in the room, or banned from it.
                return Err(RoomError::MembersUnknown);
            }
        }
        let auth: Vec<&Event> = state.iter().filter(|event| selects(&selected, event)).collect();
        let previous: Vec<&Event> = previous.iter().filter_map(|id| Some(&view.stored(id)?.event)).collect();
        let depth = extremities.iter().map(|one| one.depth).max().unwrap_or(0).saturating_add(1).min(MAX_DEPTH);
        let mut object = Object::new();
        object.insert("type", draft.event_type.as_str());
        if let Some(state_key) = &draft.state_key {
            object.insert("state_key", state_key.as_str());
        }
        object.insert("sender", sender.as_str());
        object.insert("room_id", judgement.room.room_id.as_str());
        let mut content = draft.content.clone();
        if let Some(redacts) = &draft.redacts {
            let holder = if version.redacts_in_content { &mut content } else { &mut object };
            holder.insert("redacts", redacts.as_str());
        }
        object.insert("content", Value::Object(content));
        object.insert("auth_events", Value::Array(auth.iter().map(|event| event.reference()).collect()));
        object.insert("prev_events", Value::Array(previous.iter().map(|event| event.reference()).collect()));
        object.insert("depth", depth);
        if self.invites_elsewhere(draft) {
            // The schema of `PUT /invite` wants it, though no room version does. The hash covers it, so it cannot be added later.
            object.insert("origin", self.server_name().as_str());
        }
        object.insert("origin_server_ts", self.clock.now_ms());
        self.give_id(&mut object, version);
        Ok(Proto { object, state, before })
    }

    /// The local user whom the event takes out of the room: another join of theirs may be under way, whose answer is late.
    fn put_out(&self, event: &Event) -> Option<UserId> {
        let is_out = matches!(event.membership(), Some(Membership::Leave | Membership::Ban));
        let user = UserId::parse(event.state_key().filter(|_| is_out)?).ok()?;
        (user.server_name() == self.server_name().as_str()).then_some(user)
    }

    /// Whether the event invites a user of another server.
    fn invites_elsewhere(&self, draft: &Draft) -> bool {
        let invitee = draft.state_key.as_deref().filter(|_| draft.event_type == "m.room.member");
        let is_invite = draft.content.get("membership").and_then(Value::as_str) == Some(Membership::Invite.as_str());
        let invitee = invitee.filter(|_| is_invite).and_then(|user| UserId::parse(user).ok());
        invitee.is_some_and(|user| user.server_name() != self.server_name().as_str())
    }

    async fn read_for_draft(
        &self,
        view: &mut View<'_>,
        room_id: &RoomId,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<Room, RoomError> {
        let rooms = self.rooms_for_draft(view, vec![room_id.clone()], sender, draft).await?;
        rooms.into_iter().next().ok_or(RoomError::UnknownRoom)
    }

    /// Those of `rooms` that this server is in, with the state that `draft` needs in each.
    async fn rooms_for_draft(
        &self,
        view: &mut View<'_>,
        rooms: Vec<RoomId>,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<Vec<Room>, RoomError> {
        // The room's version is not known before it is read: the selection of the newest asks for most.
        let newest = RoomVersion::all().last().copied().ok_or(RoomError::UnknownRoom)?;
        let mut keys = selection(newest, sender, draft);
        keys.extend([type_and_key("m.room.create", ""), policy_key()]);
        if let Some(state_key) = &draft.state_key {
            keys.push(type_and_key(&draft.event_type, state_key));
        }
        let rooms = view.load_rooms(rooms, &keys, Vec::new(), Vec::new()).await?;
        Ok(rooms.into_iter().filter(|room| room.local_joined > 0).collect())
    }

    /// Names an event of this server where the room version (1 and 2) leaves that to us.
    pub fn give_id(&self, object: &mut Object, version: &RoomVersion) {
        if version.event_ids == EventIds::Given {
            object.insert("event_id", format!("${}:{}", self.random_name(), self.server_name()));
        }
    }

    /// 18 random letters, digits, `-` and `_`.
    fn random_name(&self) -> String {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut bytes = [0; 18];
        self.random.fill(&mut bytes);
        bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 64)])).collect()
    }
}

fn joined(user: &UserId, content: Object) -> Draft {
    Draft::membership(user.as_str(), Membership::Join, content)
}

fn selection(version: &RoomVersion, sender: &UserId, draft: &Draft) -> Vec<TypeAndKey> {
    let state_key = draft.state_key.as_deref();
    auth_events::selection(version, &draft.event_type, sender.as_str(), state_key, &draft.content)
        .into_iter()
        .map(|(event_type, state_key)| type_and_key(event_type, state_key))
        .collect()
}

fn selects(selected: &[TypeAndKey], event: &Event) -> bool {
    selected.iter().any(|(event_type, state_key)| event.is_state(event_type, state_key))
}
