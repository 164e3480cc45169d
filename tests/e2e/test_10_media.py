"""Media on the real runtime with its local bucket, and both ways with Synapse."""

import hashlib
import os
import socket
import ssl
import struct
import zlib

import pytest

from client import ApiError
from net import wait_for


def upload(client, data, content_type="application/octet-stream", filename=None):
    """Uploads, and answers with server name and media ID."""
    headers = {"Authorization": f"Bearer {client.token}", "Content-Type": content_type}
    answer = client.session.post(
        f"{client.base}/_matrix/media/v3/upload", data=data, params={"filename": filename}, headers=headers, timeout=300
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["content_uri"].removeprefix("mxc://")


def get(client, kind, path, headers=(), **query):
    headers = {"Authorization": f"Bearer {client.token}", **dict(headers)}
    url = f"{client.base}/_matrix/client/v1/media/{kind}/{path}"
    return client.session.get(url, params=query, headers=headers, timeout=300, stream=True)


def png(width, height):
    """An image whose left half is red."""
    row = b"\0" + b"\xff\0\0" * (width // 2) + b"\0\0\xff" * (width - width // 2)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(row * height))
        + chunk(b"IEND", b"")
    )


def pieces(data, size=64 * 1024):
    """Without a length that is known beforehand."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.fixture(scope="module")
def alice(worker):
    return worker.user("alice")


def test_what_is_uploaded_is_downloaded_as_it_was(alice):
    data = os.urandom(300_000)
    path = upload(alice, data, "image/png", "Zürich.png")
    answer = get(alice, "download", path)
    assert answer.status_code == 200 and answer.content == data
    assert answer.headers["Content-Length"] == str(len(data))
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Disposition"] == "inline; filename*=utf-8''Z%C3%BCrich.png"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox;")
    part = get(alice, "download", path, {"Range": "bytes=1000-1999"})
    assert part.status_code == 206 and part.content == data[1000:2000]
    assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(data)}"
    assert get(alice, "download", path, {"If-None-Match": answer.headers["ETag"]}).status_code == 304
    assert get(alice, "download", upload(alice, b"")).content == b""


def test_a_body_of_unknown_length_goes_in_parts(alice):
    for length in (100, 5 * 1024 * 1024, 12_345_678):
        data = os.urandom(length)
        path = upload(alice, pieces(data))
        assert get(alice, "download", path).content == data, length


def test_a_hundred_megabytes_go_in_and_out(worker, alice, tmp_path):
    file, digest = tmp_path / "large", hashlib.sha256()
    with open(file, "wb") as out:
        for _ in range(100):
            piece = os.urandom(1024 * 1024)
            digest.update(piece)
            out.write(piece)
    with open(file, "rb") as data:
        path = upload(alice, data)
    seen = hashlib.sha256()
    for piece in get(alice, "download", path).iter_content(1024 * 1024):
        seen.update(piece)
    assert seen.hexdigest() == digest.hexdigest()
    assert alice.get("/_matrix/client/v1/media/config") == {"m.upload.size": 100 * 1024 * 1024}


@pytest.mark.parametrize(
    "head, body",
    [
        ("Content-Length: 1000000", b"x" * 300_000),
        ("Transfer-Encoding: chunked", b"493e0\r\n" + b"x" * 300_000 + b"\r\n"),
    ],
)
def test_an_upload_that_is_cut_off_leaves_nothing(worker, alice, head, body):
    before = worker.rows("SELECT COUNT(*) FROM local_media")
    context = ssl.create_default_context(cafile=str(worker.certifier.certificate))
    with socket.create_connection(("localhost", worker.port), 30) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as line:
            request = f"POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: {worker.name}\r\n"
            request += f"Authorization: Bearer {alice.token}\r\n{head}\r\n\r\n"
            line.sendall(request.encode() + body)
            wait_for(lambda: worker.rows("SELECT COUNT(*) FROM local_media") != before, "an upload that has begun")
    wait_for(lambda: worker.rows("SELECT COUNT(*) FROM local_media") == before, "nothing of what was cut off")


def test_a_thumbnail_is_made(alice):
    path = upload(alice, png(1000, 500), "image/png")
    answer = get(alice, "thumbnail", path, width=96, height=96, method="crop")
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "image/jpeg"
    assert answer.content.startswith(b"\xff\xd8\xff")
    again = get(alice, "thumbnail", path, width=96, height=96, method="crop")
    assert again.content == answer.content
    refused = get(alice, "thumbnail", upload(alice, png(20_000, 5_000), "image/png"), width=96, height=96)
    assert refused.status_code == 413 and refused.json()["errcode"] == "M_TOO_LARGE"


def test_without_a_token_there_is_nothing(worker, alice):
    path = upload(alice, b"secret")
    stranger = worker.client()
    for target in (f"/_matrix/media/v3/download/{path}", f"/_matrix/media/v3/thumbnail/{path}"):
        with pytest.raises(ApiError) as refused:
            stranger.get(target)
        assert (refused.value.status, refused.value.errcode) == (404, "M_NOT_FOUND")
    with pytest.raises(ApiError) as refused:
        stranger.get(f"/_matrix/client/v1/media/download/{path}")
    assert (refused.value.status, refused.value.errcode) == (401, "M_MISSING_TOKEN")


@pytest.mark.parametrize("ours_to_theirs", [True, False])
def test_files_and_thumbnails_go_both_ways(alice, synapse, ours_to_theirs):
    bob = synapse.user("bob" if ours_to_theirs else "brenda")
    sender, receiver = (alice, bob) if ours_to_theirs else (bob, alice)
    for data in (png(700, 700), os.urandom(3_000_000)):
        path = upload(sender, data, "image/png", "a b.png")
        answer = get(receiver, "download", path)
        assert answer.status_code == 200, answer.text
        assert answer.content == data
        assert answer.headers["Content-Type"] == "image/png"
        assert "a b.png" in answer.headers["Content-Disposition"] or "a%20b.png" in answer.headers["Content-Disposition"]
    path = upload(sender, png(700, 700), "image/png")
    thumbnail = get(receiver, "thumbnail", path, width=96, height=96, method="crop")
    assert thumbnail.status_code == 200, thumbnail.text
    assert thumbnail.headers["Content-Type"] in ("image/png", "image/jpeg")
    assert len(thumbnail.content) < 20_000
    missing = get(receiver, "download", f"{path.split('/')[0]}/nothing")
    assert missing.status_code == 404, missing.text
