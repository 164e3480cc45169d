"""TLS is verified at both ends: whoever cannot prove to be the host of its name gets no request, from us or from Synapse."""

import pytest

from client import ApiError, segment
from fake_origin import FakeOrigin
from net import wait_for
from worker import Worker

# The Worker reaches the one by `fetch`, the other over a socket of its own.
HOSTS = ["localhost", "127.0.0.1"]


@pytest.fixture(scope="module")
def alice(worker):
    return worker.user("alice")


@pytest.mark.parametrize("host", HOSTS)
def test_we_send_requests_to_a_server_that_proves_its_name(worker, alice, start, host):
    """What the next two tests lean on: nothing but the certificate keeps their servers from being asked."""
    origin = start(FakeOrigin, host=host)
    assert talk(worker, alice, origin) == ({"displayname": "Fake"}, 200)
    assert origin.asked == ["GET /_matrix/federation/v1/query/profile", "GET /_matrix/key/v2/server"]


@pytest.mark.parametrize("host", HOSTS)
def test_we_send_nothing_to_a_server_that_an_unknown_authority_certified(
    worker, alice, start, unknown_authority, host
):
    origin = start(FakeOrigin, host=host, certifier=unknown_authority)
    assert talk(worker, alice, origin) == ("M_UNKNOWN", 401)
    assert origin.asked == []


@pytest.mark.parametrize("host", HOSTS)
def test_we_send_nothing_to_a_server_that_is_certified_for_another_host(worker, alice, start, host):
    origin = start(FakeOrigin, host=host, certified_for=["elsewhere.example.org"])
    assert talk(worker, alice, origin) == ("M_UNKNOWN", 401)
    assert origin.asked == []


def talk(worker, alice, origin):
    """Makes the Worker send two requests: one for a client, and one for the keys of who sends it a transaction. What
    becomes of both."""
    try:
        profile = alice.get(f"/profile/{segment(origin.user('mallory'))}")
    except ApiError as error:
        profile = error.errcode
    return profile, origin.send(worker, []).status_code


def test_synapse_sends_us_nothing_where_an_unknown_authority_certified_us(start, synapse, unknown_authority):
    worker = start(Worker, certifier=unknown_authority, options=["--log-costs"])
    alice, bob = worker.user("alice"), synapse.user("bob")
    alias = f"#tls:{worker.name}"
    room = alice.create_room(preset="public_chat", room_alias_name="tls")

    def joined():
        try:
            return bob.join(alias) == room
        except ApiError:
            return False

    assert not joined()
    assert "certificate verify failed" in synapse.log()
    assert "/query/directory" not in worker.log()

    # With another certificate the same server gets what it was not given before.
    worker.stop()
    worker.certify(synapse.authority)
    worker.start()
    wait_for(joined, "Bob in the room", step=0.5)
    wait_for(lambda: "/query/directory" in worker.log(), "the request in the log")
