"""A vendor's compiler in a process of its own: it may crash, hang, or forbid its caller to fork.

Its output goes to a log, which is kept where it fails and told in the error.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeact._cache import cache_dir
from edgeact._progress import waiting
from edgeact.errors import InputError, ToolchainError

__all__ = ["DEFAULT", "Compilation", "run_compiler"]

_STOP_S = 5  # between asking a compiler to end and ending it


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """How a vendor's compiler is run; the artifact does not depend on it.

    Attributes:
        time_limit_s: Seconds after which it is stopped, and the export fails.
        sdk: Folder of a vendor's SDK, for a target that can use one.
        progress: Show on stderr what is compiled, and since when.
    """

    time_limit_s: float = 3600.0
    sdk: Path | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.time_limit_s > 0:
            raise InputError(f"the time limit of a compiler is {self.time_limit_s:g} seconds: it must be positive")
        if self.sdk is not None and not self.sdk.is_dir():
            raise InputError(f"--sdk {self.sdk}: there is no such folder; give the one that the vendor's SDK lies in")


DEFAULT = Compilation()


def run_compiler(
    command: Sequence[str | Path],
    *,
    name: str,
    how: Compilation,
    in_a_line: Callable[[str], str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What `command` printed, stdout and stderr in one.

    Args:
        command: The program and its arguments; no shell reads it.
        name: Of the compiler, for people.
        how: Its time limit.
        in_a_line: The reason in what it printed, where it fails; its last line by default.
        environment: Added to this process's.

    Raises:
        ToolchainError: It crashed, failed, or ran longer than allowed; with its reason and the path of its log.
    """
    folder = cache_dir() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    label = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    descriptor, path = tempfile.mkstemp(prefix=time.strftime(f"{label}-%Y%m%d-%H%M%S-"), suffix=".log", dir=folder)
    log = Path(path)
    with os.fdopen(descriptor, "w") as output, waiting(name, shown=how.progress):
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # what it starts ends with it
        )
        try:
            status = process.wait(how.time_limit_s)
        except subprocess.TimeoutExpired as exc:
            raise ToolchainError(
                f"{name} was stopped after {how.time_limit_s:g} s, the time limit: --compile-limit allows more, and a "
                f"smaller network or clip needs less; its log: {log}"
            ) from exc
        except BaseException:  # interrupted: nothing failed that a log could tell of
            log.unlink()
            raise
        finally:
            _end(process)
    said = log.read_text(errors="replace")
    if status < 0:
        raise ToolchainError(f"{name} crashed ({_signal_name(-status)}) on this network; its log: {log}")
    if status:
        reason = (in_a_line or _last_line)(said)
        raise ToolchainError(f"{name} could not compile this network: {reason}; its log: {log}")
    log.unlink()
    return said


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has none
        return f"signal {number}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all that it started; nothing is done where it has ended."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        pass  # it is told once more below, in words that it cannot refuse
    finally:
        with contextlib.suppress(ProcessLookupError):  # what it started may listen less than it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"
