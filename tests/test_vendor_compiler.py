"""A vendor's compiler: what it prints, and that it neither crashes nor hangs its caller."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeact._vendor_compiler import Compilation, run_compiler
from edgeact.errors import InputError, ToolchainError


def run(code: str, **how: object) -> str:
    return run_compiler([sys.executable, "-c", code], name="The compiler", how=Compilation(**how))  # type: ignore[arg-type]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path))
    return tmp_path / "logs"


def test_what_it_printed_is_returned_and_no_log_stays(logs: Path) -> None:
    assert run("import sys; print('out'); sys.stdout.flush(); print('err', file=sys.stderr)") == "out\nerr\n"
    assert not list(logs.iterdir())


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "print('a', flush=True); raise SystemExit('no such op\\n\\n')",
            "could not compile this network: no such op; ",
        ),
        ("raise SystemExit(3)", "could not compile this network: it says nothing; "),
        ("print('before', flush=True); import os; os.abort()", r"crashed \(SIGABRT\) on this network; "),
        ("print('begun', flush=True); import time; time.sleep(60)", "was stopped after 1 s, the time limit: "),
        ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 1)", r"crashed \(signal \d+\) on this network; "),
    ],
)
def test_a_failure_keeps_its_log(code: str, told: str, logs: Path) -> None:
    with pytest.raises(ToolchainError, match=f"The compiler {told}.*its log: {logs}") as failed:
        run(code, time_limit_s=1)
    log = Path(str(failed.value).rpartition("its log: ")[2])
    assert "print" not in (text := log.read_text())
    assert bool(text) == ("print" in code)


def has_ended(pid: int) -> bool:
    """Within seconds; one that nobody has waited for yet has ended, too."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("deaf_itself", [True, False])
def test_what_it_started_ends_with_it(deaf_itself: bool, logs: Path, tmp_path: Path) -> None:
    """Also where it does not listen."""
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = f"{deaf}; import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys\n{deaf if deaf_itself else ''}\nsubprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(ToolchainError, match="was stopped"):
        run(code, time_limit_s=2)
    assert has_ended(int((tmp_path / "pid").read_text()))


def test_an_interrupt_ends_it(logs: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as in a foreground job
        "from edgeact._vendor_compiler import DEFAULT, run_compiler\n"
        f"run_compiler([sys.executable, '-c', {code!r}], name='it', how=DEFAULT)"
    )
    caller = subprocess.Popen([sys.executable, "-P", "-c", script], stderr=subprocess.PIPE)
    while not (pid.exists() and pid.read_text()):
        assert caller.poll() is None
        time.sleep(0.05)
    caller.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in caller.communicate()[1]
    assert has_ended(int(pid.read_text()))
    assert not list(logs.iterdir())


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_limit_must_be_positive(seconds: float) -> None:
    with pytest.raises(InputError, match="must be positive"):
        Compilation(time_limit_s=seconds)


def test_an_sdk_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        Compilation(sdk=tmp_path / "none")
