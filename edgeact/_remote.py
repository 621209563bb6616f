"""The device's end of `edgeact validate --device`: this file's text is sent to the device's Python, which runs it.

It needs the standard library and a POSIX system, and nothing of edgeact. It answers questions from stdin, one line of
JSON each, on stdout; all it writes lies in one folder of the cache, under one lock:

    ~/.cache/edgeact/device/<bundle's digest>/     bundle/  source/  data/  cache/  results.json
    ~/.cache/edgeact/device/<bundle's digest>.lock
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

__all__ = ["FarEnd", "serve"]

_BLOCK_BYTES = 1 << 20
_LOCK_WAIT_S = 3.0  # for the end of a connection that was cut a moment ago

# Imports each module and says which version it has, or why it cannot be imported; in a process of its own, whose
# memory is free again when the measurement starts.
_IMPORT = """
import importlib, importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
    except Exception as error:
        found[name] = {"missing": f"{type(error).__name__}: {error}"}
        continue
    try:
        found[name] = {"version": importlib.metadata.version(name)}
    except importlib.metadata.PackageNotFoundError:  # not installed by pip, as TensorRT on a Jetson
        found[name] = {"version": str(getattr(module, "__version__", "of unknown version"))}
print("\\n" + json.dumps(found))
"""


class FarEnd:
    """What the device does when it is asked; each public method is one question."""

    def __init__(self, come: BufferedReader, go: BinaryIO) -> None:
        self._come, self._go = come, go
        self._folder, self._lock = Path(), -1

    def probe(self, modules: list[str]) -> dict[str, Any]:
        """The machine, its Python, and which of `modules` can be imported."""
        command = [sys.executable, "-B", "-c", _IMPORT, *modules]
        with tempfile.TemporaryDirectory(prefix="edgeact-", ignore_cleanup_errors=True) as folder:
            own = {**os.environ, **_caches(Path(folder)), "TMPDIR": folder}
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", env=own, check=False
            )
        last = done.stdout.strip().rpartition("\n")[2]
        if done.returncode != 0 or not last:
            reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
            raise RuntimeError(f"importing {', '.join(modules)} ended the interpreter: {reason}")
        facts = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
        return {**facts, "modules": json.loads(last)}

    def open(self, name: str) -> dict[str, Any]:
        """Make or find the folder for a bundle, and lock it until this process ends."""
        own, xdg = os.environ.get("EDGEACT_CACHE"), os.environ.get("XDG_CACHE_HOME")
        self._folder = Path(own or Path(xdg or "~/.cache").expanduser() / "edgeact") / "device" / name
        self._lock = _lock(self._folder.with_suffix(".lock"))
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return {"folder": str(self._folder), "free": shutil.disk_usage(self._folder).free}

    def hash(self, files: list[str]) -> dict[str, Any]:
        """Size and sha256 of those of `files` that are there; what else the folder holds is removed."""
        wanted = {self._inside(name) for name in files}
        for found in sorted(self._folder.rglob("*"), reverse=True):  # a folder after what it holds
            if found.is_dir() and not found.is_symlink():
                with contextlib.suppress(OSError):  # not empty
                    found.rmdir()
            elif found not in wanted:
                found.unlink()
        there = [name for name in files if self._inside(name).is_file()]
        return {"files": {name: [self._inside(name).stat().st_size, _sha256(self._inside(name))] for name in there}}

    def write(self, name: str, offset: int, size: int) -> None:
        """Take `size` bytes from stdin into a file, from `offset` on; there is no answer, `hash` gives it."""
        file = self._inside(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("r+b" if offset else "wb") as stream:
            stream.seek(offset)
            stream.truncate()
            while size:
                block = self._come.read1(min(size, _BLOCK_BYTES))  # what has come: a cut loses none of it
                if not block:
                    return  # the connection was cut: what is here stays for the next
                stream.write(block)
                size -= len(block)

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the agent; its lines are passed on. Anything on stdin, its end too, stops it."""
        source = str(self._folder / "source")
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        cache = self._folder / "cache"
        own = {"PYTHONPATH": os.pathsep.join(paths), "EDGEACT_CACHE": str(cache), **_caches(cache)}
        (cache / "tmp").mkdir(parents=True, exist_ok=True)
        log = self._folder / "agent.log"
        with log.open("wb") as errors:
            agent = subprocess.Popen(
                [sys.executable, "-m", "edgeact._agent", json.dumps(request)],
                stdin=subprocess.PIPE,  # its end tells the agent that nobody listens any more
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=source,
                env={**os.environ, **own},
                start_new_session=True,
            )
        assert agent.stdout is not None
        stopped = True
        try:
            stopped = self._pass_on(agent.stdout)
        finally:
            if stopped:
                os.killpg(agent.pid, signal.SIGKILL)
            status = agent.wait()
        return {"ended": status, "said": log.read_text(errors="replace")[-2000:].strip().rpartition("\n")[2]}

    def _pass_on(self, lines: IO[bytes]) -> bool:
        """Copy `lines` to the other end until they end; True when stdin spoke first."""
        while True:
            ready = select.select([lines, self._come], [], [])[0]
            if self._come in ready:
                return True
            content = os.read(lines.fileno(), 1 << 16)
            if not content:
                return False
            self._go.write(content)
            self._go.flush()

    def fetch(self, name: str, most: int) -> None:
        """A file that the agent wrote: its size, then its bytes."""
        file = self._inside(name)
        if file.stat().st_size > most:
            raise RuntimeError(f"{name} has {file.stat().st_size} bytes, more than {most}")
        content = file.read_bytes()
        self._say({"size": len(content)})
        self._go.write(content)
        self._go.flush()

    def remove(self) -> dict[str, Any]:
        """Remove the folder, then its lock, then the folders of the cache that this leaves empty."""
        shutil.rmtree(self._folder)
        self._folder.with_suffix(".lock").unlink()
        with contextlib.suppress(OSError):  # not empty
            self._folder.parent.rmdir()
            self._folder.parent.parent.rmdir()
        return {}

    def answer(self, question: dict[str, Any]) -> bool:
        """Do what is asked; False when it failed and no further question can be understood."""
        do: str = question.pop("do")
        try:
            reply = getattr(self, do)(**question)
        except (OSError, RuntimeError, ValueError) as error:
            reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
            self._say({"failed": reason})
            return do != "write"  # the rest of the file is still in the pipe
        if reply is not None:
            self._say(reply)
        return True

    def _say(self, reply: dict[str, Any]) -> None:
        self._go.write(json.dumps(reply).encode() + b"\n")
        self._go.flush()

    def _inside(self, name: str) -> Path:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise RuntimeError(f"{name!r} is not a path inside the folder")
        return self._folder / pure


def _caches(folder: Path) -> dict[str, str]:
    """Variables by which what runs keeps its own files in `folder`: it is removed with them.

    ONNX Runtime would also report to Microsoft; see `edgeact/runtime/_onnxruntime.py`.
    """
    places = {
        "TMPDIR": "tmp",
        "XDG_CACHE_HOME": "xdg",
        "CUDA_CACHE_PATH": "cuda",
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
    }
    return {"ORT_DISABLE_TELEMETRY": "1", **{name: str(folder / place) for name, place in places.items()}}


def _lock(file: Path) -> int:
    """A descriptor that holds the lock on `file` until it is closed."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == file.stat().st_ino:  # else its holder removed it meanwhile
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        holder = os.read(descriptor, 20).decode() or "unknown"
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"another run validates this bundle here now (process {holder}): wait for its end; where its "
                "connection was cut, the device notices within minutes"
            )
        time.sleep(0.1)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def serve() -> None:
    """Answer until stdin ends."""
    assert isinstance(sys.stdin.buffer, BufferedReader)
    far_end = FarEnd(sys.stdin.buffer, sys.stdout.buffer)
    while line := sys.stdin.buffer.readline():
        if not far_end.answer(json.loads(line)):
            break


if __name__ == "__main__":
    serve()
