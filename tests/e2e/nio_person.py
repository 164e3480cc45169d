"""A person at a device with matrix-nio, whose messages are encrypted."""

import io
import ssl
import time
from pathlib import Path

from nio import AsyncClient, AsyncClientConfig, ErrorResponse, Event, LoginResponse, MegolmEvent, RoomEncryptedImage
from nio.crypto.attachments import decrypt_attachment

from net import PATIENCE

_ENCRYPTED = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}


def good(response):
    """A response that is no error."""
    assert not isinstance(response, ErrorResponse), response
    return response


class Person:
    """One device. Nothing happens in the background: a `turn` does once what nio's endless sync does."""

    def __init__(self, client):
        self.client = client
        self.user_id = client.user_id
        # By room, what was heard: texts by their senders, and how many events could not be decrypted.
        self.heard = {}
        self.undecrypted = {}
        # By its text, each picture that was sent encrypted.
        self.pictures = {}

    @classmethod
    async def log_in(cls, server, user_id, password, device_id, folder: Path):
        """A device that has uploaded its keys."""
        store = folder / device_id
        store.mkdir(parents=True)
        config = AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True, request_timeout=60)
        tls = ssl.create_default_context(cafile=str(server.authority.certificate))
        client = AsyncClient(server.base, user_id, device_id, str(store), config=config, ssl=tls)
        assert isinstance(response := await client.login(password), LoginResponse), response
        person = cls(client)
        await person.turn()
        return person

    async def turn(self, timeout=0):
        """A sync, and what follows from it."""
        client = self.client
        synced = good(await client.sync(timeout))
        for sent in await client.send_to_device_messages():
            good(sent)
        if client.should_upload_keys:
            good(await client.keys_upload())
        if client.should_query_keys:
            good(await client.keys_query())
        if client.should_claim_keys:
            good(await client.keys_claim(client.get_users_for_key_claiming()))
        for room, joined in synced.rooms.join.items():
            for event in joined.timeline.events:
                self._hear(room, event)
        return synced

    def _hear(self, room, event: Event):
        if isinstance(event, MegolmEvent):
            self.undecrypted.setdefault(room, []).append(event.event_id)
        elif event.decrypted:
            self.heard.setdefault(room, []).append((event.sender, event.body))
            if isinstance(event, RoomEncryptedImage):
                self.pictures[event.body] = event

    async def create_encrypted_room(self, *invited):
        return good(await self.client.room_create(invite=invited, initial_state=[_ENCRYPTED])).room_id

    async def say(self, room, text):
        """Encrypts and sends a text, for all devices that nio knows of."""
        content = {"msgtype": "m.text", "body": text}
        good(await self.client.room_send(room, "m.room.message", content, ignore_unverified_devices=True))

    async def send_picture(self, room, text, picture):
        """Encrypts and uploads a picture, and sends where it is and how it is opened."""
        sent, keys = await self.client.upload(io.BytesIO(picture), "image/png", encrypt=True, filesize=len(picture))
        content = {"msgtype": "m.image", "body": text, "info": {"mimetype": "image/png"}, "file": {**keys, "url": good(sent).content_uri}}
        good(await self.client.room_send(room, "m.room.message", content, ignore_unverified_devices=True))

    async def open_picture(self, text):
        """Downloads and decrypts a picture that was heard of."""
        event = self.pictures[text]
        answer = good(await self.client.download(event.url))
        return decrypt_attachment(answer.body, event.key["k"], event.hashes["sha256"], event.iv)

    def has_heard(self, room, sender, text):
        return (sender.user_id, text) in self.heard.get(room, [])

    def knows(self, *others):
        """Whether the keys of these devices are known."""
        return all(other.client.device_id in self.devices_of(other) for other in others)

    def devices_of(self, other):
        """The IDs of another's devices."""
        return {device.id for device in self.client.device_store.active_user_devices(other.user_id)}


async def until(people, condition, what, timeout=PATIENCE):
    """Lets all take their turns until the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        for person in people:
            await person.turn(100)
