"""matrix-nio, a client library that we did not write, acts as a local user."""

import asyncio
import ssl

from nio import (
    AsyncClient,
    AsyncClientConfig,
    JoinResponse,
    LoginResponse,
    RoomCreateResponse,
    RoomPreset,
    RoomSendResponse,
    SyncResponse,
)

from net import wait_for


def test_nio_creates_a_room_talks_and_syncs(worker, synapse):
    worker.user("nina", "secret")
    bob = synapse.user("bob")
    asyncio.run(session(worker, bob))


async def session(worker, bob):
    context = ssl.create_default_context(cafile=str(worker.authority.certificate))
    nina = AsyncClient(worker.base, f"@nina:{worker.name}", ssl=context, config=AsyncClientConfig(request_timeout=60))
    try:
        assert isinstance(await nina.login("secret"), LoginResponse)
        created = await nina.room_create(preset=RoomPreset.public_chat, name="Nio", alias="nio")
        assert isinstance(created, RoomCreateResponse), created
        room = created.room_id
        assert isinstance(await nina.sync(full_state=True), SyncResponse)
        assert nina.rooms[room].name == "Nio"

        await asyncio.to_thread(bob.join, f"#nio:{worker.name}")
        said = await asyncio.to_thread(bob.say, room, "hello Nina")
        answer = await nina.room_send(room, "m.room.message", {"msgtype": "m.text", "body": "hello Bob"})
        assert isinstance(answer, RoomSendResponse), answer
        await asyncio.to_thread(bob.wait_for_event, room, answer.event_id)

        seen = []
        while said not in seen:
            synced = await asyncio.wait_for(nina.sync(timeout=5000), 60)
            assert isinstance(synced, SyncResponse), synced
            if room in synced.rooms.join:
                seen += [event.event_id for event in synced.rooms.join[room].timeline.events]
        assert seen.count(said) == 1 and seen.count(answer.event_id) == 1
        assert set(nina.rooms[room].users) == {nina.user_id, bob.user_id}

        history = await nina.room_messages(room, nina.next_batch, limit=100)
        assert [e.body for e in history.chunk if e.source["type"] == "m.room.message"].count("hello Nina") == 1

        theirs = await asyncio.to_thread(bob.create_room, preset="public_chat", room_alias_name="theirs")
        joined = await nina.join(f"#theirs:{bob.user_id.split(':', 1)[1]}")
        assert isinstance(joined, JoinResponse) and joined.room_id == theirs, joined
        await nina.room_leave(theirs)
        await asyncio.to_thread(wait_for, lambda: bob.members(theirs) == {bob.user_id}, "Nina has left")
    finally:
        await nina.close()
