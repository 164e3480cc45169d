"""A room of 500 members on a Synapse, which leaves them out of its answer to the join: people talk at once, and who is in the room is had
meanwhile."""

from client import segment
from net import wait_for
from worker import Worker

MEMBERS = 500


def test_people_talk_in_a_room_of_500_while_its_members_come(start, synapse):
    worker = start(Worker)
    alice, erin, bob = worker.user("alice"), worker.user("erin"), synapse.user("bob")
    room = bob.create_room(preset="public_chat", room_alias_name="crowd", name="Crowd")
    crowd = [synapse.user(f"crowd{number}") for number in range(MEMBERS - 1)]
    join = f"/join/{segment(f'#crowd:{synapse.name}')}"
    for member in crowd:
        member.post(join)

    assert alice.post(join, patience=120)["room_id"] == room
    # Nobody has waited for the members.
    said = alice.say(room, "hello")
    answer = crowd[7].say(room, "hello yourself")
    bob.wait_for_event(room, said)
    alice.wait_for_event(room, answer)
    assert worker.rows("SELECT count(*) FROM partial_rooms WHERE room_id = ?", room) == [(1,)], "the members were left out"
    assert alice.get_state(room, "m.room.name") == {"name": "Crowd"}

    def is_whole():
        return worker.rows("SELECT stage FROM partial_rooms WHERE room_id = ?", room) == [(2,)]

    wait_for(is_whole, "who is in the room")
    everyone = {client.user_id for client in (alice, bob, *crowd)}
    assert len(everyone) == MEMBERS + 1
    for client in (alice, bob):
        client.wait_for_members(room, everyone)
    assert alice.state(room) == bob.state(room)
    claimed = "SELECT count(*) FROM events WHERE room_id = ? AND claimed"
    assert worker.rows(claimed, room) == [(0,)], "nothing rests on what was answered in part"
    counted = "SELECT server, joined FROM room_servers WHERE room_id = ? AND to_pos IS NULL ORDER BY server"
    assert worker.rows(counted, room) == sorted([(worker.name, 1), (synapse.name, MEMBERS)])

    # It is a room like any other.
    erin.join(room, via=synapse.name)
    for speaker, listener in ((crowd[11], erin), (erin, crowd[11])):
        said = speaker.say(room, f"says {speaker.user_id}")
        listener.wait_for_event(room, said)
    alice.leave(room)
    bob.wait_for_membership(room, alice.user_id, "leave")
