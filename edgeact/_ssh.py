"""One connection to a device: the system's OpenSSH client here, `edgeact/_remote.py` at the other end.

    here     {"do": "hash", "files": [...]}  ──ssh──►  device
    here          ◄──ssh──  {"files": {...}}           device

The client is the user's own, so that their configuration, agent, keys, jump hosts and known hosts work. Host keys are
always verified and no password is ever asked for. What the device says is untrusted: lines are limited in length and
cleaned of control characters before anyone sees them.
"""

import contextlib
import json
import shlex
import subprocess
import threading
from collections import deque
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, NoReturn

from edgeact._address import Address
from edgeact.errors import DeviceError, InputError

__all__ = ["Connection", "printable"]

OLDEST_PYTHON = (3, 10)
_MAX_LINE_BYTES = 32 << 20  # the hashes of a hundred thousand clips
_MAX_BANNER_LINES = 200  # what a shell's startup files print before the first answer
_MARK = "edgeact-device "
# Python 2 and 3.5 understand it too, so that an old Python says its version and not a syntax error.
_START = (
    "import sys; sys.stdout.write('\\n{mark}%d %d\\n' % sys.version_info[:2]); sys.stdout.flush(); "
    "sys.version_info < {oldest} and sys.exit(0); exec(sys.stdin.buffer.read({size}))"
)
_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "ControlMaster": "no",  # one that others use is taken; one of our own would outlive us
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
}
# What ssh says (OpenSSH 7 to 10), and what to do about it.
_REASONS = {
    "host identification has changed": "its host key is not the one you know: someone may listen in, or the device was "
    "installed anew; compare its fingerprint, then `ssh-keygen -R {host}`",
    "host key verification failed": "its host key is not known here: run `{ssh}` once and compare the fingerprint",
    "permission denied": "it refused the login: is the key of this user on it (`{ssh}` must work without a password)?",
    "could not resolve": "there is no host of that name",
    "connection refused": "nothing listens on that port: is sshd running there?",
    "timed out": "it did not answer",
    "no route to host": "it cannot be reached from here",
    "network is unreachable": "it cannot be reached from here",
    "no such identity": "the key that the ssh configuration names is missing",
    "bad configuration option": "the ssh configuration cannot be read",
    "can't open user config file": "the ssh configuration cannot be read",
}


class Connection:
    """Questions to a device and its answers, one line of JSON each.

    `idle` tells that no answer is outstanding, so another question may be asked; `lost`, that the connection ended.

    Args:
        address: The device.
        python: The interpreter there.
        ssh_config: Read in place of ~/.ssh/config.

    Raises:
        InputError: There is no ssh here, or no Python there that is new enough.
        DeviceError: The device cannot be reached, or is not the one it was.
    """

    def __init__(self, address: Address, *, python: str = "python3", ssh_config: Path | None = None) -> None:
        self.address, self._python, self._ssh_config = address, python, ssh_config
        self._login = _login(address, ssh_config)
        self.idle = self.lost = False
        program = files("edgeact").joinpath("_remote.py").read_bytes()
        start = _START.format(mark=_MARK, oldest=OLDEST_PYTHON, size=len(program))
        try:
            self._ssh = subprocess.Popen(
                [*self._login, f"{shlex.quote(python)} -c {shlex.quote(start)}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C ends the run in order: here first
            )
        except FileNotFoundError as exc:
            raise InputError("--device needs the OpenSSH client `ssh`: install openssh-client") from exc
        self._in, self._out = _pipe(self._ssh.stdin), _pipe(self._ssh.stdout)
        self._said: deque[str] = deque(maxlen=20)
        self._listener = threading.Thread(target=self._listen, args=(_pipe(self._ssh.stderr),), daemon=True)
        self._listener.start()
        try:
            self._check_python()
            self.send(program)
        except BaseException:
            self.close()
            raise
        self.idle = True

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One question, one answer.

        Raises:
            DeviceError: The device cannot do it, or the connection ended.
        """
        self.tell(do, **arguments)
        answer = self.answer()
        self.idle = True
        return answer

    def tell(self, do: str, **arguments: Any) -> None:
        """A question whose answer is read later."""
        self.idle = False
        self.send(json.dumps({"do": do, **arguments}).encode() + b"\n")

    def send(self, content: bytes | memoryview) -> None:
        """Bytes that the question before announced.

        Raises:
            DeviceError: The device cannot take them (a full disk), or the connection ended.
        """
        try:
            self._in.write(content)
            self._in.flush()
        except OSError:
            self.answer()  # why, where the device could still say it
            self._ended()

    def answer(self) -> dict[str, Any]:
        """The next line of the device; it must not be an error.

        Raises:
            DeviceError: It is one, it is no answer, or the connection ended.
        """
        line = self._line()
        try:
            answer = json.loads(line)
            if not isinstance(answer, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as exc:
            raise DeviceError(f"{self.address} gave an answer that cannot be read: {printable(line)!r}") from exc
        if "failed" in answer:
            raise DeviceError(f"{self.address}: {printable(answer['failed'])}")
        return answer

    def receive(self, size: int) -> bytes:
        """The bytes that the answer before announced.

        Raises:
            DeviceError: The connection ended.
        """
        content = self._out.read(size)
        if len(content) < size:
            self._ended()
        return content

    def again(self) -> "Connection":
        """Another connection to the same device."""
        return Connection(self.address, python=self._python, ssh_config=self._ssh_config)

    def close(self) -> None:
        """End the connection; the device's end sees that and ends too."""
        self.idle = False
        self._ssh.kill()
        self._ssh.wait()
        self._listener.join(5)  # a proxy of ssh's may hold stderr a moment longer
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):  # what was not sent
                pipe.close()

    def _check_python(self) -> None:
        for _ in range(_MAX_BANNER_LINES):
            line = self._line(first=True)
            if line.startswith(_MARK):
                break
        else:
            raise DeviceError(f"{self.address} prints without end at login: its shell's startup files must be silent")
        found = tuple(int(part) for part in line[len(_MARK) :].split() if part.isdecimal())
        if found < OLDEST_PYTHON:
            raise InputError(
                f"{self.address} has Python {'.'.join(map(str, found))} as {self._python}, 3.10 or newer is needed: "
                "name another with --python; a JetPack 5 board builds and measures with the bundle's own "
                "build_engine.py, and `edgeact validate BUNDLE --results FILE` judges what it wrote"
            )

    def _line(self, *, first: bool = False) -> str:
        line = self._out.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            if len(line) == _MAX_LINE_BYTES:
                raise DeviceError(f"{self.address} sent a line of more than {_MAX_LINE_BYTES >> 20} MiB: refused")
            self._ended(first=first)
        return line.decode(errors="replace").strip()

    def _ended(self, *, first: bool = False) -> NoReturn:
        """Say why there is no more to read; `first` before the first answer."""
        self.lost = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._ssh.wait(5)
        self._listener.join(5)
        said = " ".join(self._said)
        if first and self._ssh.returncode in (126, 127):  # sh(1): cannot be executed, not found
            raise InputError(f"{self.address} has no Python as {self._python!r}: install it, or name it with --python")
        if first and self._ssh.returncode == 255:  # ssh(1): an error of its own
            ssh = shlex.join([part for part in self._login if not part.startswith("-o")][:-2])
            ssh = f"{ssh} {shlex.quote(self.address.host)}"
            for sign, reason in _REASONS.items():
                if sign in said.lower():
                    why = reason.format(host=self.address.host, ssh=ssh)
                    raise DeviceError(f"cannot log in to {self.address}: {why} ({printable(self._said[-1])})")
            raise DeviceError(f"cannot log in to {self.address}: {printable(said) or 'ssh gave no reason'}")
        last = printable(self._said[-1]) if self._said else f"ssh ended with status {self._ssh.returncode}"
        raise DeviceError(f"the connection to {self.address} ended: {last}")

    def _listen(self, errors: IO[bytes]) -> None:
        """Keep the last lines of stderr; reading them all keeps ssh from waiting for a reader."""
        with errors:
            for line in iter(lambda: errors.readline(1000), b""):
                if text := line.decode(errors="replace").strip():
                    self._said.append(text)


def _login(address: Address, ssh_config: Path | None) -> list[str]:
    """The command that logs in, up to the remote command; "--" ends its options before a name from outside."""
    command = ["ssh", *(["-F", str(ssh_config)] if ssh_config else [])]
    command += [f"-o{name}={value}" for name, value in _OPTIONS.items()]
    command += ["-p", str(address.port)] if address.port else []
    command += ["-l", address.user] if address.user else []
    return [*command, "--", address.host]


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # it was asked for
    return pipe


def printable(text: Any) -> str:
    """What a device said, short and without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in str(text)).strip()[:500]
