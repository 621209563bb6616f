"""A device: a real OpenSSH server on the loopback with keys of its own, and a Python without torch at its end."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# Relays to the server, and is cut: after so many bytes to the device, or when a file appears.
_RELAY = """
import glob, os, selectors, socket, sys
port, most, sign = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
server = socket.create_connection(("127.0.0.1", port))
selector = selectors.DefaultSelector()
selector.register(0, selectors.EVENT_READ)
selector.register(server, selectors.EVENT_READ)
while most > 0 and not glob.glob(sign):
    for key, _ in selector.select(0.05):
        content = os.read(key.fd, 1 << 14)
        if not content:
            sys.exit(0)
        if key.fd == 0:
            most -= len(content)
            server.sendall(content)
        else:
            os.write(1, content)
"""


@dataclass(frozen=True)
class Server:
    """A running sshd; `device` is its address, which its ssh configuration knows the key and port of."""

    folder: Path
    port: int
    config: Path
    device: str = "ssh://device"

    @property
    def cache(self) -> Path:
        """What the device keeps."""
        return self.folder / "home" / "edgeact"

    def configure(self, name: str, *lines: str) -> Path:
        """Another ssh configuration, whose first lines win."""
        config = self.folder / f"config-{name}"
        indented = "".join(f"  {line}\n" for line in lines)
        config.write_text(f"Host *\n{indented}{self.config.read_text()}")
        return config

    def cut_after(self, most: int = 1 << 60, sign: str = "never") -> Path:
        """An ssh configuration whose connections end after `most` bytes, or when `cache / sign` is there."""
        relay = self.folder / "relay.py"
        relay.write_text(_RELAY)
        command = f"{sys.executable} -S {relay} {self.port} {most} '{self.cache / sign}'"
        return self.configure("cut", f"ProxyCommand {command}")

    def wait_for_far_ends(self) -> None:
        """Until those whose connection was cut have noticed it."""
        deadline = time.monotonic() + 10
        while any(Path("/proc", lock.read_text()).exists() for lock in self.cache.glob("device/*.lock")):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _key(file: Path, keygen: str) -> str:
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(file)], check=True)
    return file.with_suffix(".pub").read_text()


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """sshd of this user on a free port of the loopback, with keys of its own."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    keygen = shutil.which("ssh-keygen")
    if sshd is None or keygen is None or shutil.which("ssh") is None:
        pytest.skip("no OpenSSH server here: install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it separates privileges
    host, user = _key(folder / "host", keygen), _key(folder / "user", keygen)
    _key(folder / "stranger", keygen)
    (folder / "authorized").write_text(user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host}")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/authorized\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nSetEnv XDG_CACHE_HOME={folder}/home\n"
    )
    config = folder / "config"
    config.write_text(
        f"Host *\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  IdentityAgent none\n  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile /dev/null\n"
    )
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _wait_for(port, running, folder / "log")
        yield Server(folder, port, config)
    finally:
        running.terminate()
        running.wait()


def _wait_for(port: int, running: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(100):
        if running.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text()[-300:]}")
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    pytest.fail("sshd does not listen")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("ssh")) as found:
        yield found


MakePython = Callable[..., Path]


@pytest.fixture(scope="session")
def make_python(tmp_path_factory: pytest.TempPathFactory) -> MakePython:
    """`make_python("numpy", "av")`: an interpreter with those distributions and nothing else."""

    def make(*distributions: str) -> Path:
        folder = tmp_path_factory.mktemp("python")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        for name in distributions:
            distribution = importlib.metadata.distribution(name)
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
        return folder / "bin" / "python"

    return make


@pytest.fixture(scope="session")
def python(make_python: MakePython) -> str:
    """The device's interpreter: OpenVINO, and no torch."""
    pytest.importorskip("openvino")
    made = make_python("numpy", "av", "openvino")
    for absent in ("torch", "rich", "click", "jsonschema", "edgeact"):
        done = subprocess.run([made, "-c", f"import {absent}"], capture_output=True, text=True, cwd="/", check=False)
        assert f"No module named '{absent}'" in done.stderr
    return str(made)
