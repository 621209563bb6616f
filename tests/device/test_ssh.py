"""The connection itself, every way in which there is none, and the far end's answers."""

import os
import signal
import sys
from pathlib import Path

import pytest
from ssh_server import Server

from edgeact._address import Address
from edgeact._ssh import Connection, printable
from edgeact.errors import DeviceError, InputError

DEVICE = Address("device")


def connected(server: Server, python: str = sys.executable) -> Connection:
    return Connection(DEVICE, python=python, ssh_config=server.config)


def fails_to_connect(config: Path, address: Address = DEVICE, python: str = sys.executable) -> str:
    with pytest.raises((DeviceError, InputError)) as error, Connection(address, python=python, ssh_config=config):
        pytest.fail("connected")
    return str(error.value)


def test_a_stranger_is_not_the_device(server: Server) -> None:
    other = (server.folder / "stranger.pub").read_text()
    (server.folder / "known-other").write_text(f"[127.0.0.1]:{server.port} {other}")
    config = server.configure("other", f"UserKnownHostsFile {server.folder}/known-other")
    message = fails_to_connect(config)
    assert message.startswith("cannot log in to device: its host key is not the one you know: someone may listen in")


def test_an_unknown_host_is_not_trusted(server: Server) -> None:
    config = server.configure("unknown", f"UserKnownHostsFile {server.folder}/nobody", "StrictHostKeyChecking no")
    message = fails_to_connect(config, Address("device", "me", server.port))
    assert f"its host key is not known here: run `ssh -F {config} -p {server.port} -l me device` once" in message
    assert not (server.folder / "nobody").exists()


def test_another_key_is_refused(server: Server) -> None:
    config = server.configure("stranger", f"IdentityFile {server.folder}/stranger")
    text = config.read_text().replace(f"IdentityFile {server.folder}/user", "")
    config.write_text(text)
    assert "it refused the login: is the key of this user on it" in fails_to_connect(config)


def test_an_unreachable_port(server: Server) -> None:
    assert "nothing listens on that port: is sshd running there?" in fails_to_connect(
        server.config, Address("d", None, 1)
    )


def test_no_such_host(server: Server) -> None:
    config = server.folder / "empty"
    config.write_text("")
    assert "there is no host of that name (ssh: " in fails_to_connect(config, Address("no-such-host.invalid"))


def test_a_configuration_that_ssh_cannot_read(server: Server, tmp_path: Path) -> None:
    assert "the ssh configuration cannot be read" in fails_to_connect(tmp_path / "absent")
    assert "the ssh configuration cannot be read" in fails_to_connect(server.configure("bad", "NoSuchOption yes"))


def test_other_reasons_are_sshs_own(server: Server) -> None:
    config = server.configure("proxy", "ProxyCommand /bin/false")
    assert fails_to_connect(config).startswith("cannot log in to device: ")


def test_no_ssh_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="--device needs the OpenSSH client `ssh`: install openssh-client"):
        Connection(DEVICE)


def script(file: Path, text: str) -> str:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("python", ["/no/such/python", "/etc/passwd", "two words; touch"])
def test_no_python(server: Server, python: str) -> None:
    message = fails_to_connect(server.config, python=python)
    assert message == f"device has no Python as {python!r}: install it, or name it with --python"


def test_a_python_that_is_too_old(server: Server, tmp_path: Path) -> None:
    old = script(tmp_path / "python3", r"printf '\nedgeact-device 3 8\n'")
    message = fails_to_connect(server.config, python=old)
    assert message.startswith(f"device has Python 3.8 as {old}, 3.10 or newer is needed: name another with --python")
    assert "validate BUNDLE --results FILE" in message


def test_a_login_that_talks(server: Server, tmp_path: Path) -> None:
    polite = script(tmp_path / "python3", f'echo Welcome; printf "no newline"; exec {sys.executable} "$@"')
    with Connection(DEVICE, python=polite, ssh_config=server.config) as connection:
        assert "3." in connection.ask("probe", modules=["json"])["python"]
    endless = script(tmp_path / "endless", "yes")
    assert "prints without end at login" in fails_to_connect(server.config, python=endless)


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("echo not json", "gave an answer that cannot be read: 'not json'"),
        ("echo '[1]'", r"gave an answer that cannot be read: '\[1\]'"),
        (r"""printf '{"failed": "\\u001b[31mno\\u0007"}\n'""", r"device: \[31mno$"),
        ("head -c 40000000 /dev/zero", "sent a line of more than 32 MiB: refused"),
    ],
)
def test_answers_that_are_none(server: Server, tmp_path: Path, says: str, reason: str) -> None:
    hostile = script(tmp_path / "python3", rf"printf '\nedgeact-device 3 12\n'; {says}; cat > {tmp_path}/got")
    with Connection(DEVICE, python=hostile, ssh_config=server.config) as connection:
        with pytest.raises(DeviceError, match=reason):
            connection.ask("probe", modules=[])
        assert not connection.lost


@pytest.mark.parametrize(("says", "reason"), [("echo why >&2; exit 3", "why"), ("exit 3", "ssh ended with status 3")])
def test_a_far_end_that_ends(server: Server, tmp_path: Path, says: str, reason: str) -> None:
    hostile = script(tmp_path / "python3", rf"printf '\nedgeact-device 3 12\n'; {says}")
    with (
        pytest.raises(DeviceError, match=f"the connection to device ended: {reason}"),
        Connection(DEVICE, python=hostile, ssh_config=server.config) as connection,
    ):
        connection.ask("probe", modules=[])


def test_printable() -> None:
    assert printable("a\x1b]0;title\x07b\n\u202ec" + "x" * 600) == "a ]0;title b  c" + "x" * 485
    assert printable(None) == "None"


def test_modules_are_imported_and_versioned(server: Server) -> None:
    with connected(server) as connection:
        found = connection.ask("probe", modules=["numpy", "no_such_module", "json", "sys"])
    assert found["modules"]["numpy"]["version"][0].isdecimal()
    assert found["modules"]["json"] == {"version": "2.0.9"}  # as a module tells that pip did not install
    assert found["modules"]["sys"] == {"version": "of unknown version"}
    assert found["modules"]["no_such_module"] == {"missing": "ModuleNotFoundError: No module named 'no_such_module'"}


def test_a_module_that_crashes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "crashes.py").write_text("import os; os._exit(9)")
    python = script(tmp_path / "python3", f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    with Connection(DEVICE, python=python, ssh_config=server.config) as connection:
        with pytest.raises(DeviceError, match="importing crashes ended the interpreter: exit status 9"):
            connection.ask("probe", modules=["crashes"])
        assert connection.ask("probe", modules=[])["modules"] == {}


def test_one_run_at_a_time(server: Server) -> None:
    with connected(server) as first, connected(server) as second:
        place = first.ask("open", name="twice")
        assert Path(place["folder"]) == server.cache / "device" / "twice"
        assert place["free"] > 1e6
        with pytest.raises(DeviceError, match=r"another run validates this bundle here now \(process \d+\)"):
            second.ask("open", name="twice")
        first.ask("remove")
        second.ask("open", name="twice")
        second.ask("remove")
    assert not server.cache.exists()


def test_names_stay_inside_the_folder(server: Server) -> None:
    with connected(server) as connection:
        connection.ask("open", name="inside")
        for name in ("../x", "/etc/x", ""):
            with pytest.raises(DeviceError, match="is not a path inside the folder"):
                connection.ask("hash", files=[name])
        with pytest.raises(DeviceError, match=r"No such file or directory: .*/absent"):
            connection.ask("fetch", name="absent", most=1)
        connection.tell("write", name="large", offset=0, size=5)
        connection.send(b"12345")
        with pytest.raises(DeviceError, match="large has 5 bytes, more than 4"):
            connection.ask("fetch", name="large", most=4)
        connection.ask("remove")
    assert not server.cache.exists()


def test_what_cannot_be_written_is_told(server: Server) -> None:
    with connected(server) as connection:
        connection.ask("open", name="full")
        connection.tell("write", name="a", offset=0, size=1)
        connection.send(b"a")
        connection.tell("write", name="a/b", offset=0, size=64 << 20)
        with pytest.raises(DeviceError, match=r"device: (Not a directory|File exists): "):
            connection.send(bytes(64 << 20))
        assert not connection.lost
    with connected(server) as connection:
        connection.ask("open", name="full")
        connection.ask("remove")


def test_the_far_end_ends_with_the_connection(server: Server) -> None:
    with connected(server) as connection:
        connection.ask("open", name="ends")
        holder = int((server.cache / "device" / "ends.lock").read_text())
        os.kill(holder, 0)
    server.wait_for_far_ends()
    with connected(server) as connection:
        connection.ask("open", name="ends")
        connection.ask("remove")


def test_the_far_end_killed(server: Server) -> None:
    with connected(server) as connection:
        connection.ask("open", name="killed")
        os.kill(int((server.cache / "device" / "killed.lock").read_text()), signal.SIGKILL)
        with pytest.raises(DeviceError, match="the connection to device ended"):
            connection.ask("remove")
        with connection.again() as another:
            another.ask("open", name="killed")
            another.ask("remove")
