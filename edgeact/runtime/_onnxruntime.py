"""ONNX Runtime, imported without its telemetry, and the threads of a session.

Official builds from 1.29 on report to Microsoft on Linux and macOS too: at import they write an id of the device, a
database and a session file (~/.cache/Microsoft/DeveloperTools/.onnxruntime, $TMPDIR/.ses) and start an uploader. What
turns that off is a variable that is set before the import; `disable_telemetry_events()` comes too late for it, and is
what Windows has (onnxruntime/docs/Privacy.md).
"""

import os
from typing import Any

__all__ = ["import_onnxruntime", "session_options"]


def import_onnxruntime() -> Any:
    """The module; where a user has set ORT_DISABLE_TELEMETRY, that holds.

    Raises:
        ImportError: It is not installed.
    """
    asked = os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    if asked == "1":
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def session_options(threads: int) -> Any:
    """Options of a session on that many threads, which sleep between two runs.

    By default they spin for a while, and take the cores from whatever else is measured between two of its runs.
    """
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return options
