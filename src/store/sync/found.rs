//! What a sync has found, out of the rows of its answers.

use super::{ChangedAccountData, MemberCounts, MembersKnown, NewEvents, RestRead, SyncFound, SyncRoom, room_id};
use crate::{
    platform::{DatabaseError, Rows},
    store::{
        memberships::stored,
        positions::{AccountDataPos, DeviceListsPos, PresencePos, ReceiptsPos, TimelinePos, ToDevicePos, TypingPos},
        sync_fleeting::FleetingAt,
        timeline::{SeenEvent, TimelineEvent, room_version, root},
    },
};

impl SyncFound {
    /// Takes in the newest positions; those of typing, receipts and presence it gives back.
    pub(super) fn read_positions(&mut self, rows: Rows) -> Result<FleetingAt, DatabaseError> {
        let mut fleeting = FleetingAt::default();
        for row in rows {
            match row.text(0)? {
                "events" => self.events = TimelinePos::read(&row, 1)?,
                "device_lists" => self.device_lists = DeviceListsPos::read(&row, 1)?,
                "typing" => fleeting.typing = TypingPos::read(&row, 1)?,
                "receipts" => fleeting.receipts = ReceiptsPos::read(&row, 1)?,
                "presence" => fleeting.presence = PresencePos::read(&row, 1)?,
                "to_device" => self.to_device = ToDevicePos::read(&row, 1)?,
                _ => self.account_data = AccountDataPos::read(&row, 1)?,
            }
        }
        Ok(fleeting)
    }

    /// Takes in the rooms, and whether there are more of them.
    pub(super) fn read_rooms(&mut self, rows: Rows, rest: Option<RestRead<'_>>) -> Result<(), DatabaseError> {
        let mut total = 0;
        for row in rows {
            total = row.integer(10)?;
            let version = row.optional_text(5)?.map(room_version).transpose()?;
            self.rooms.push(SyncRoom {
                room_id: room_id(row.text(0)?)?,
                membership: stored(row.text(1)?)?,
                event_id: row.text(2)?.to_owned(),
                pos: TimelinePos::read(&row, 3)?,
                invite_state: row.optional_text(4)?.map(str::to_owned),
                room: version.zip(root(&row, 6)?),
                state_since: root(&row, 7)?,
                joined_until: TimelinePos::read_optional(&row, 8)?,
                state_when_left: root(&row, 9)?,
                counts: MemberCounts {
                    joined: row.optional_integer(11)?.unwrap_or(0),
                    invited: row.optional_integer(12)?.unwrap_or(0),
                },
                members: match row.optional_integer(13)? {
                    None => MembersKnown::Always,
                    Some(0) => MembersKnown::NotYet,
                    Some(_) => match TimelinePos::read(&row, 14)? {
                        // The rest of an answer is told as it was.
                        from if rest.is_some_and(|rest| rest.to < from) => MembersKnown::NotYet,
                        from => MembersKnown::From(from),
                    },
                },
            });
        }
        self.is_cut = usize::try_from(total).is_ok_and(|total| total > self.rooms.len());
        Ok(())
    }

    /// Takes in the new events, and leaves out the rooms whose events are too long to be read at once.
    pub(super) fn read_timelines(&mut self, rows: Rows, is_filtered: bool) -> Result<(), DatabaseError> {
        let mut next_room = None;
        for row in rows {
            if next_room.is_none() {
                next_room = row.optional_text(SeenEvent::COLUMNS + 4)?.map(str::to_owned);
            }
            let room = room_id(row.text(SeenEvent::COLUMNS + 2)?)?;
            let new = self.timelines.entry(room).or_default();
            // Where no more is looked at something may be left out, as in a gap.
            let is_floor = is_filtered && row.integer(SeenEvent::COLUMNS + 5)? != 0;
            if is_floor || row.integer(SeenEvent::COLUMNS + 3)? != 0 {
                *new = NewEvents { events: Vec::new(), after_gap: true };
            }
            if !is_filtered || row.integer(SeenEvent::COLUMNS + 6)? != 0 {
                new.events.push(TimelineEvent::of_row(&row)?);
            }
        }
        if let Some(next_room) = next_room {
            self.rooms.retain(|room| *room.room_id.as_str() < *next_room);
            self.is_cut = true;
        }
        Ok(())
    }

    /// Takes in account data: what is new in rooms that the client knows, and what there is in others.
    pub(super) fn read_account_data(&mut self, page: Rows, of_new_rooms: Rows) -> Result<(), DatabaseError> {
        if let Some(last) = page.last()
            && last.integer(4)? != 0
        {
            // The rest is told next.
            self.account_data = AccountDataPos::read(last, 3)?;
        }
        for (rows, is_known_room) in [(page, true), (of_new_rooms, false)] {
            for row in rows {
                let text = |column| row.text(column).map(str::to_owned);
                let (room_id, event_type, content) = (text(0)?, text(1)?, text(2)?);
                self.changed_account_data.push(ChangedAccountData { room_id, event_type, content, is_known_room });
            }
        }
        Ok(())
    }
}
