"""`npm run dev`: says that it is ready only when it is, and else what is wrong."""

import json
import os
import re
import shutil
import socket
import subprocess

import pytest

from net import free_port
from worker import ROOT, Worker

NODE = ROOT / "node_modules" / ".bin" / "node"


def dev(folder, *options, root=ROOT):
    """What the launcher prints that ends by itself, with a failure."""
    command = [NODE, root / "scripts" / "dev.mjs", "--as-built", "--persist-to", folder, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    printed = ended.stdout + ended.stderr
    assert ended.returncode == 1, printed
    assert "ready https://" not in printed
    return printed


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--port", "abc"], "--port abc is no port"),
        (["--port", "65536"], "--port 65536 is no port"),
        (["--ip", "localhost"], "--ip localhost is no IP address"),
        (["--cron-seconds", "soon"], "--cron-seconds soon is no number of seconds"),
        (["--ca", "/nowhere.pem"], "--ca /nowhere.pem: no such file"),
        (["--tls-key", "key.pem"], "--tls-key and --tls-cert go together"),
        (["--registration", "token"], "--registration token needs --registration-token"),
        (["--colour", "blue"], "--colour"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tmp_path, options, sentence):
    assert sentence in dev(tmp_path, *options)


PROGRAMS = ["npm", "rustup", "cc", "openssl", "python3"]


@pytest.mark.parametrize("missing", [["npm"], ["rustup"], ["cc"], ["openssl"], ["python3"], ["openssl", "python3"]])
def test_what_a_machine_lacks_is_named_in_one_sentence(tmp_path, missing):
    for program in set(PROGRAMS) - set(missing):
        # As much of it as is asked whether it is there.
        (tmp_path / program).write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / program).chmod(0o755)
    done = subprocess.run(
        [NODE, ROOT / "scripts" / "setup.mjs", "--tests"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": str(tmp_path)},
    )
    assert done.returncode == 1 and done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert "this machine lacks" in sentence
    # The C compiler's name stands in brackets, as it is a part of other words.
    named = [program for program in PROGRAMS if (f"({program})" if program == "cc" else program) in sentence]
    assert named == missing


def test_a_node_that_is_too_old_is_named_in_one_sentence():
    """It could not read the other scripts; so this one comes before them, and is written as the oldest reads it."""
    script = ROOT / "scripts" / "node-version.cjs"

    def asked(version):
        done = subprocess.run([NODE, script, version], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    assert asked("12.22.9") == (1, "this machine lacks Node 20 or newer (this is 12.22.9)\n")
    assert asked("18.20.8")[0] == 1
    assert asked("20.0.0") == asked("24.21.0") == (0, "")
    commands = json.loads((ROOT / "package.json").read_text())["scripts"].values()
    assert all(command.startswith("node scripts/node-version.cjs && exec node scripts/") for command in commands)
    esbuild = ROOT / "node_modules" / ".bin" / "esbuild"
    subprocess.run([esbuild, script, "--target=es5"], capture_output=True, check=True, timeout=60)


def evaluated(module, expression):
    """The value of an expression in which `it` is a module of the scripts, and what was printed before it."""
    script = f"""
        import * as it from "{(ROOT / "scripts" / module).as_uri()}";
        console.log(JSON.stringify(await ({expression})));
    """
    command = [NODE, "--input-type=module", "--eval", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    *printed, value = done.stdout.splitlines()
    return json.loads(value), printed


def test_steps_are_numbered_and_their_total_is_told():
    step = "(title, needed) => ({ title, needed: async () => needed, run: async () => console.log(`${title} runs`) })"
    three = f"[['one', true], ['two', false], ['three', true]].map(([title, needed]) => ({step})(title, needed))"
    _, printed = evaluated("common.mjs", f"it.perform({three}).then(() => null)")
    plain = [re.sub(r"\x1b\[\d+m", "", line) for line in printed]
    assert plain == [
        "==> [1/2] one", "one runs", "==> [1/2] done after 0 s",
        "==> [2/2] three", "three runs", "==> [2/2] done after 0 s",
        "==> All 2 steps took 0 s",
    ]


@pytest.mark.parametrize(
    "status, body, sentence",
    [
        (200, '{"server_name": "a.example"}', None),
        (200, '{"server_name": "b.example"}', "the server calls itself b.example, not a.example"),
        (200, "<html>", "the program that answers there is not a homeserver"),
        (500, "{}", "the server does not work and answers 500"),
    ],
)
def test_it_is_ready_under_its_own_name_alone(status, body, sentence):
    answer = json.dumps({"status": status, "body": body})
    said, _ = evaluated("ready.mjs", f"it.mistake({{ 'server-name': 'a.example' }}, {answer})")
    assert said == sentence if sentence is None else said.startswith(sentence)


@pytest.mark.parametrize("status, is_wrong", [(404, False), (200, False), (500, True), (503, True)])
def test_it_is_not_ready_without_its_database(status, is_wrong):
    get = f"async (_, path) => path.includes('/directory/room/%23ready%3Aa.example') ? {{ status: {status} }} : null"
    said, _ = evaluated("ready.mjs", f"it.databaseMistake({{ 'server-name': 'a.example' }}, {get})")
    assert (said is not None and "cannot use its database" in said) == is_wrong


def test_a_port_in_use_is_told(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"port {port} on 127.0.0.1 is in use" in dev(tmp_path, "--port", port)


def refusal(printed):
    """Why the configuration is refused, by the server's log."""
    records = [json.loads(line) for line in re.findall(r'\{"level".*\}', printed)]
    (reason, *_) = [record["reason"] for record in records if record["what"] == "the configuration is refused"]
    return reason


@pytest.mark.parametrize(
    "options, setting",
    [
        (["--doh", "http://example.org"], 'DNS_OVER_HTTPS is "http://example.org"'),
        (["--server-name", "not a name"], "SERVER_NAME"),
        (["--default-room-version", "99"], 'DEFAULT_ROOM_VERSION is "99"'),
    ],
)
def test_a_setting_that_the_server_refuses_is_told_to_the_operator_only(tmp_path, options, setting):
    """The server answers 500, and its log says what is wrong."""
    printed = dev(tmp_path, "--port", str(free_port()), *options)
    assert refusal(printed).startswith(setting)
    answered = re.search(r"answers 500 (\{.*\})", printed).group(1)
    assert "M_UNKNOWN" in answered and setting.split()[0] not in answered


def test_a_damaged_signing_key_is_told_and_not_shown(tmp_path):
    secret = "ed25519 a_AbCd tooShortToBeASeed"
    (tmp_path / "signing.key").write_text(secret)
    printed = dev(tmp_path, "--port", str(free_port()))
    assert refusal(printed).startswith("SIGNING_KEY")
    assert "tooShortToBeASeed" not in printed


def test_the_version_of_new_rooms_can_be_chosen(start):
    worker = start(Worker, options=["--default-room-version", "10"])
    alice = worker.user("alice")
    room = alice.create_room()
    assert alice.get_state(room, "m.room.create")["room_version"] == "10"


def clone(folder, wrangler_toml):
    """A clone with these settings, and with a wrangler that always fails: as far as the launcher gets by itself."""
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "migrations").mkdir()
    (folder / "wrangler.toml").write_text(wrangler_toml)
    wrangler = folder / "node_modules" / ".bin" / "wrangler"
    wrangler.parent.mkdir(parents=True)
    wrangler.write_text("#!/bin/sh\nexit 1\n")
    wrangler.chmod(0o755)
    return folder


def test_the_database_is_a_local_one_whichever_is_deployed(tmp_path):
    settings = (ROOT / "wrangler.toml").read_text()
    without = re.sub(r"(?m)^\[\[d1_databases\]\]\n(.+\n)+", "", settings)
    assert "database_id" not in without
    other = re.sub(r'(?m)^database_id = .*', 'database_id = "6f1c1d0e-0000-4000-8000-000000000000"', settings)
    ids = set()
    for name, text in {"as_it_is": settings, "without": without, "other": other}.items():
        root = clone(tmp_path / name, text)
        assert "wrangler d1 execute" in dev(root / "data", "--port", str(free_port()), root=root)
        (bound,) = json.loads((root / "data" / "wrangler.json").read_text())["d1_databases"]
        ids.add(bound["database_id"])
    assert len(ids) == 1


def test_a_setting_that_wrangler_toml_lacks_is_named(tmp_path):
    settings = (ROOT / "wrangler.toml").read_text()
    root = clone(tmp_path, re.sub("(?m)^compatibility_date.*", "", settings))
    printed = dev(root / "data", "--port", str(free_port()), root=root)
    assert "wrangler.toml has no compatibility_date" in printed


def made_for(folder, *hosts):
    """The certificate that the launcher has for these names, which the authority beside it has signed."""
    script = f"""
        import {{ authority, leaf }} from "{(ROOT / "scripts" / "certificates.mjs").as_uri()}";
        const [folder, ...hosts] = process.argv.slice(1);
        await leaf(folder, hosts, await authority(`${{folder}}/ca`));
    """
    subprocess.run([NODE, "--input-type=module", "--eval", script, folder, *hosts], check=True, timeout=60)
    for host in hosts:
        kind = "-verify_ip" if host[0].isdigit() else "-verify_hostname"
        verify = ["openssl", "verify", "-CAfile", folder / "ca" / "ca.crt", kind, host, folder / "tls.crt"]
        subprocess.run(verify, check=True, capture_output=True, timeout=60)
    return (folder / "tls.crt").read_bytes()


def test_a_certificate_is_made_anew_where_it_does_not_serve(tmp_path):
    first = made_for(tmp_path, "localhost", "127.0.0.1")
    assert made_for(tmp_path, "localhost", "127.0.0.1") == first
    elsewhere = made_for(tmp_path, "localhost", "203.0.113.7")
    assert elsewhere != first

    shutil.rmtree(tmp_path / "ca")
    of_another_authority = made_for(tmp_path, "localhost", "203.0.113.7")
    assert of_another_authority != elsewhere

    soon = ["-x509", "-new", "-key", tmp_path / "tls.key", "-days", "29", "-subj", "/CN=localhost"]
    subprocess.run(["openssl", "req", *soon, "-out", tmp_path / "tls.crt"], check=True, capture_output=True, timeout=60)
    made_for(tmp_path, "localhost", "203.0.113.7")
