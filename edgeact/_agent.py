"""Measures a bundle on the device that it runs on: `python -m edgeact._agent REQUEST`, started by `edgeact/_remote.py`.

REQUEST is JSON. stdout carries lines of JSON, {"progress": …} and at most one {"error": …}; the results are a file.
It imports neither click, rich nor jsonschema: a device needs numpy, PyAV and the bundle's runtime.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from edgeact._progress import tell_progress
from edgeact.bundle import Bundle, open_bundle
from edgeact.errors import EdgeactError
from edgeact.measure import measure
from edgeact.results import write_results
from edgeact.runtime import compile_engine, needs_engine, runtime_here

__all__ = ["main"]


def main() -> int:
    """Measure as asked in `sys.argv`; 0 when the results are written, 1 after an error that was told."""
    lines = os.dup(1)
    os.dup2(2, 1)  # a runtime that prints must not garble the lines
    threading.Thread(target=_leave_when_nobody_listens, daemon=True).start()

    def say(**fields: Any) -> None:
        os.write(lines, json.dumps(fields).encode() + b"\n")

    request: dict[str, Any] = json.loads(sys.argv[1])
    out = Path(request.pop("out"))
    try:
        with tell_progress(lambda what, done, total: say(progress=[what, done, total])):
            bundle = open_bundle(request.pop("bundle"))
            _compile(bundle, request["threads"])
            write_results(measure(bundle, **request, progress=True), out)
    except EdgeactError as exc:
        say(error=[type(exc).__name__, str(exc)])
        return 1
    except OSError as exc:
        say(error=["DeviceError", f"{exc.strerror or exc}" + (f": {exc.filename}" if exc.filename else "")])
        return 1
    return 0


def _compile(bundle: Bundle, threads: int) -> None:
    """Where the runtime wants an engine, build it here; it goes with the folder that was sent."""
    runtime = runtime_here(bundle)
    if needs_engine(runtime):
        clip = np.ascontiguousarray(bundle.golden()[0].frames[None])
        compile_engine(runtime, bundle.path, clip, threads)


def _leave_when_nobody_listens() -> None:
    """The other end holds stdin open and says nothing; when it is gone, so is whoever asked."""
    os.read(0, 1)  # not sys.stdin, whose lock an ending interpreter waits for
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
