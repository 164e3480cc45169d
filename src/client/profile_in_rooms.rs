//! What rooms are told of a user's new name or picture: a membership event in each that they are in (Client-Server API,
//! "Events on Change of Profile Information").

use super::body::{member_content, merged};
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        auth_events::AUTHORISED_VIA,
        event::Event,
        identifiers::{RoomId, UserId},
        state_content::Membership,
    },
    room::RoomError,
    server::Server,
};

/// How many rooms are told of a new profile in one commit: any of them may be in the way of it.
const ROOMS_TOLD_AT_ONCE: usize = 25;

/// Tells all rooms that `user` is in of their new profile. A room that does not allow it keeps the old one.
///
/// # Errors
/// Where the database fails.
pub(super) async fn tell_profile(server: &Server, user: &UserId) -> Result<(), MatrixError> {
    let (telling, user) = (server.clone(), user.clone());
    // What some rooms know the others must learn too, whether the client waits for it or not.
    let work = async move { tell_all(&telling, &user).await };
    server.platform.to_the_end(work).await
}

async fn tell_all(server: &Server, user: &UserId) -> Result<(), MatrixError> {
    let rooms = server.store.rooms_of(user, Membership::Join).await?;
    for rooms in rooms.chunks(ROOMS_TOLD_AT_ONCE) {
        match tell(server, user, rooms).await {
            // One of them changes all the time: the others need not wait for it.
            Err(RoomError::Busy) => {
                for room_id in rooms {
                    match tell(server, user, std::slice::from_ref(room_id)).await {
                        Err(RoomError::Busy) => {
                            log_untold(server, room_id, user, &RoomError::Busy);
                        }
                        told => told?,
                    }
                }
            }
            told => told?,
        }
    }
    Ok(())
}

async fn tell(server: &Server, user: &UserId, rooms: &[RoomId]) -> Result<(), RoomError> {
    // As it is when the rooms have been read: another request may have changed it since, and told them already.
    let change = async || {
        let of_profile = member_content(&server.store.own_profile(user.as_str()).await?);
        Ok(move |member: &Event| {
            let mut content = member.content().clone();
            // Who vouched for the join has nothing to say to what follows it.
            for name in ["displayname", "avatar_url", "reason", AUTHORISED_VIA] {
                content.remove(name);
            }
            let content = merged(content, of_profile.clone());
            (content != *member.content()).then_some(content)
        })
    };
    let told = server.rooms.change_member(rooms, user, change).await?;
    told.changed.iter().for_each(|room_id| server.flush(room_id));
    for (room_id, why) in told.forbidden {
        log_untold(server, &room_id, user, &RoomError::NotAllowed(why));
    }
    Ok(())
}

fn log_untold(server: &Server, room_id: &RoomId, user: &UserId, error: &RoomError) {
    let record = LogRecord::warning("a room does not learn a user's new profile").room(room_id).user(user);
    server.platform.log.write(record.because(error));
}
