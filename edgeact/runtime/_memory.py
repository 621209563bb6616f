"""Peak memory of running a bundle, read in a process of its own: `python -m edgeact.runtime._memory ARTIFACT…`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgeact.clip import ClipSpec
from edgeact.errors import ToolchainError
from edgeact.runtime import load_runner

__all__ = ["peak_memory_mb"]


def peak_memory_mb(runtime: str, folder: Path, spec: ClipSpec, threads: int) -> float | None:
    """Peak resident megabytes (10^6 bytes) of a fresh process that loads the artifact and runs two clips.

    None where the system does not tell (Windows has no getrusage).

    Raises:
        ToolchainError: The fresh process could not run the artifact.
    """
    if sys.platform == "win32":
        return None
    python = [sys.executable, *(["-P"] if hasattr(sys.flags, "safe_path") else [])]  # from Python 3.11
    arguments = [runtime, str(folder), json.dumps(spec.to_dict()), str(threads)]
    command = [*python, "-m", "edgeact.runtime._memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ToolchainError(f"a fresh process could not run the artifact in {folder}: {last[0]}")
    return float(done.stdout)


def _own_peak_mb() -> float:
    """Peak resident megabytes of this process alone.

    Linux carries ru_maxrss over from the process that forked (getrusage(2) counts before exec too), so a small child of
    a large parent would report the parent; VmHWM starts anew with the program (proc_pid_status(5)).
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    # bytes on macOS, KiB on the BSDs (getrusage(2) of each)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    clip_spec = ClipSpec.from_dict(json.loads(sys.argv[3]))
    runner = load_runner(sys.argv[1], Path(sys.argv[2]), clip_spec, int(sys.argv[4]))
    for _ in range(2):
        runner(np.zeros((1, *clip_spec.clip_shape), np.uint8))
    print(_own_peak_mb())
