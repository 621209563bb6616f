"""A bundle measured on a device that ssh reaches, end to end: a real server, a Python without torch."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ssh_server import Server

import edgeact
from edgeact import _delivery, device
from edgeact._delivery import Item, source_items
from edgeact._progress import tell_progress
from edgeact._ssh import Connection
from edgeact.accuracy import Accuracy
from edgeact.cli import main
from edgeact.clip import ClipSpec
from edgeact.device import measure_on
from edgeact.errors import BundleError, DeviceError, InputError, ToolchainError, VideoError
from edgeact.parity import NotMeasured
from edgeact.results import EvaluationOutputs, Results
from edgeact.sustained import Sustained

pytest.importorskip("openvino")
Measure = Callable[..., Results]


@pytest.fixture(scope="module")
def bundle(videos: Path, tiny_spec: ClipSpec, tmp_path_factory: pytest.TempPathFactory) -> edgeact.Bundle:
    torch.manual_seed(0)
    model = edgeact.create_model("ir_csn_26", num_classes=12, width=0.25)
    gates = edgeact.Gates(min_sqnr_db=60, min_agreement=0, max_drop_pt=100)
    quick: dict[str, Any] = {"gates": gates, "threads": 1, "rounds": 1, "out": tmp_path_factory.mktemp("bundles")}
    return edgeact.export(model, target="openvino", spec=tiny_spec, data=videos, **quick)


@pytest.fixture
def measure(server: Server, python: str, bundle: edgeact.Bundle) -> Measure:
    """`measure_on` with what every call here needs."""

    def call(**given: Any) -> Results:
        how: dict[str, Any] = {"threads": 1, "rounds": 1, "python": python, "ssh_config": server.config}
        return measure_on(server.device, bundle, **how | given)

    return call


def test_whole(server: Server, measure: Measure, bundle: edgeact.Bundle, videos: Path) -> None:
    told: list[str] = []
    with tell_progress(lambda what, done, total: told.append(what)):
        results = measure(data=videos, minutes=0.03, progress=True)
    report = edgeact.validate(bundle, results=results)
    assert report.held, report.failures
    assert isinstance(report.accuracy, Accuracy)
    assert report.accuracy.n == 24
    assert report.accuracy.agreement == 1
    assert report.environment["torch"] == "not installed"
    assert report.notes[0].startswith("decoding: 4 golden videos give the export's frames to the bit")
    (where,) = [note for note in report.notes if note.startswith("measured on device: Linux ")]
    assert "Python 3." in where
    assert "openvino 20" in where
    assert isinstance(report.sustained, Sustained)
    assert len(report.sustained.windows) == 3
    assert list(dict.fromkeys(told)) == ["copying to device (MiB)", "decoding", "running for 0.03 minutes"]
    assert not server.cache.exists()


def test_golden_alone_and_kept(server: Server, measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    results = measure(keep=True)
    kept = f"{server.cache}/device/{results.bundle_digest[:16]}"
    assert results.evaluation == NotMeasured("give --data to run the 24 clips of the evaluation set")
    assert results.notes[-1] == f"{kept} is kept on device"
    assert {"bundle/manifest.json", "source/edgeact/_agent.py", "results.json"} <= {
        path.relative_to(kept).as_posix() for path in Path(kept).rglob("*")
    }
    sent = count_sent(monkeypatch)
    measure()
    assert sent == [0]
    assert not server.cache.exists()


def count_sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of every delivery from now on."""
    sent: list[int] = []

    def deliver(*given: Any, **how: Any) -> int:
        sent.append(_delivery.deliver(*given, **how))
        return sent[-1]

    monkeypatch.setattr(device, "deliver", deliver)
    return sent


def test_a_copy_that_is_cut_goes_on(
    server: Server, measure: Measure, bundle: edgeact.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(item.size for item in {**_delivery.bundle_items(bundle), **source_items()}.values())
    most = total * 3 // 4
    with pytest.raises(DeviceError, match=r"ended: .*; run it again: the copy goes on from what is in .*/device/"):
        measure(ssh_config=server.cut_after(most))
    server.wait_for_far_ends()
    there = sum(path.stat().st_size for path in server.cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    assert 0 < there < most  # sshd drops what it has not passed on
    sent = count_sent(monkeypatch)
    measure()
    assert sent == [total - there]
    assert not server.cache.exists()


def test_a_connection_that_ends_while_measuring(server: Server, measure: Measure) -> None:
    with pytest.raises(DeviceError, match=r"the connection to device ended: .*; run it again"):
        measure(minutes=10, ssh_config=server.cut_after(sign="device/*/agent.log"))
    assert server.cache.exists()
    assert not agents_after(5, server)
    measure()
    assert not server.cache.exists()


def agents_after(seconds: float, server: Server) -> list[str]:
    """Processes that still run in the device's folder; those that end within `seconds` are waited for."""
    deadline = time.monotonic() + seconds
    while True:
        running = []
        for process in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                running += [process.parent.name] if str(process.readlink()).startswith(str(server.cache)) else []
        if not running or time.monotonic() > deadline:
            return running
        time.sleep(0.05)


@pytest.mark.parametrize("sign", ["device/*/bundle", "device/*/agent.log"])
def test_an_interrupt_leaves_nothing(server: Server, python: str, bundle: edgeact.Bundle, sign: str) -> None:
    where = ["--device", server.device, "--ssh-config", str(server.config), "--python", python]
    command = [sys.executable, "-m", "edgeact", "validate", str(bundle.path), *where, "--minutes", "10", "--quiet"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(server.cache.glob(sign)):
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    running.terminate()
    _, said = running.communicate(timeout=60)
    assert (running.returncode, said) == (2, "error: interrupted: nothing half-written was left behind\n")
    assert not server.cache.exists()
    assert not agents_after(5, server)


def test_a_device_without_the_runtime(server: Server, measure: Measure, make_python: Callable[..., Path]) -> None:
    bare, half = make_python(), make_python("numpy", "av")
    with pytest.raises(
        InputError, match=r"device cannot import numpy \(ModuleNotFoundError: No module named 'numpy'\)"
    ):
        measure(python=str(bare))
    install = rf"device cannot import openvino .*run `{half} -m pip install 'edgeact\[openvino\]'` there, or name"
    with pytest.raises(InputError, match=install):
        measure(python=str(half))
    assert not server.cache.exists()


def with_agent(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Another program in place of the agent, on a device that is taken to have what it needs."""
    monkeypatch.setattr(device, "_check_device", lambda *given: "unchecked")
    changed = {"source/edgeact/_agent.py": Item.of(text.encode())}
    monkeypatch.setattr(device, "source_items", lambda: source_items() | changed)


WRITE = "import sys, pathlib; pathlib.Path('../results.json').write_text({!r})"


@pytest.mark.parametrize(
    ("agent", "kind", "reason"),
    [
        (WRITE.format("{}"), DeviceError, "device sent results that are refused: .*"),
        (WRITE.format('{"schema": 1e999}'), DeviceError, "device sent results that are refused: "),
        (WRITE.format("[" * 100_000), DeviceError, "device sent results that are refused: "),
        (
            WRITE.format(" ") + ".__class__; open('../results.json', 'wb').truncate(1 << 30)",
            DeviceError,
            "results.json has 1073741824 bytes, more than",
        ),
        ("pass", DeviceError, "No such file or directory: .*/results.json"),
        ("raise SystemExit(3)", DeviceError, "the measurement on device ended with status 3: it gave no reason"),
        ("1 / 0", DeviceError, "ended with status 1: ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", DeviceError, r"ended with status -9: it gave no reason \(out of memory"),
        ("print('no json')", DeviceError, "gave an answer that cannot be read: 'no json'"),
        ("""print('{"error": ["BundleError", "bad\\\\u0007"]}')""", BundleError, "^on device: bad$"),
        ("""print('{"error": ["ToolchainError", "bad"]}')""", ToolchainError, "^on device: bad$"),
        ("""print('{"error": ["SystemExit", "bad"]}')""", DeviceError, "^on device: bad$"),
        ("""print('{"error": 1, "progress": [1, 2]}'); raise SystemExit("no")""", DeviceError, "status 1: no$"),
    ],
)
def test_an_agent_that_is_not_ours(
    server: Server, measure: Measure, monkeypatch: pytest.MonkeyPatch, agent: str, kind: type[Exception], reason: str
) -> None:
    with_agent(monkeypatch, agent)
    with pytest.raises(kind, match=reason):
        measure()
    assert not server.cache.exists()


def test_results_of_another_bundle(server: Server, measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Path(str(source_items()["source/edgeact/_agent.py"].source)).read_text()
    with_agent(
        monkeypatch,
        agent.replace("write_results(measure(", "write_results(other(").replace(
            "def main",
            """
def other(*given, **how):
    return __import__("dataclasses").replace(measure(*given, **how), bundle_digest="0" * 64)

def main""",
        ),
    )
    with pytest.raises(DeviceError, match="device sent results that are refused: "):
        measure()
    assert not server.cache.exists()


@pytest.mark.parametrize("size", ["many", -1, 1 << 40, None])
def test_results_of_no_size(server: Server, measure: Measure, monkeypatch: pytest.MonkeyPatch, size: Any) -> None:
    ask = Connection.ask
    offer = {"size": size}
    monkeypatch.setattr(Connection, "ask", lambda self, do, **how: offer if do == "fetch" else ask(self, do, **how))
    with_agent(monkeypatch, "pass")
    with pytest.raises(DeviceError, match=f"device offers results of {size} bytes, at most"):
        measure()
    assert not server.cache.exists()


def test_what_cannot_be_removed_is_told(server: Server, measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Connection.ask

    def stubborn(self: Connection, do: str, **how: Any) -> dict[str, Any]:
        if do == "remove":
            raise DeviceError("device: Read-only file system")
        return ask(self, do, **how)

    monkeypatch.setattr(Connection, "ask", stubborn)
    left = r"/device/\w+ is left on device: device: Read-only file system$"
    assert re.search(left, measure().notes[-1])
    with_agent(monkeypatch, "1 / 0")
    with pytest.raises(DeviceError, match=f"ZeroDivisionError: division by zero; .*{left}"):
        measure()
    monkeypatch.setattr(Connection, "ask", ask)
    with pytest.raises(DeviceError, match=r"ZeroDivisionError: division by zero$"):
        measure()
    assert not server.cache.exists()


def device_fields(bundle: edgeact.Bundle) -> dict[str, Any]:
    fields: dict[str, Any] = {"schema": 1, "bundle": {"name": "b", "digest": bundle.manifest["digest"]}}
    fields |= {"created": "2026-11-22T09:00:00Z", "runtime": {"name": "r", "version": "1"}, "device": {"name": "d"}}
    return fields | {"golden": [{"id": clip.id, "logits": clip.logits.tolist()} for clip in bundle.golden()]}


@pytest.mark.parametrize("sent", [{}, {"sustained": {"not_measured": "give --minutes"}}])
def test_a_device_that_sends_no_sustained_run(
    measure: Measure, bundle: edgeact.Bundle, monkeypatch: pytest.MonkeyPatch, sent: dict[str, Any]
) -> None:
    with_agent(monkeypatch, WRITE.format(json.dumps(device_fields(bundle) | sent)))
    notes = edgeact.validate(bundle, results=measure(minutes=0.5)).notes
    assert "sustained run: not measured: device sent none, and 0.5 minutes were asked for" in notes
    assert not [note for note in edgeact.validate(bundle, results=measure()).notes if "sustained" in note]


def test_a_device_without_golden_logits_is_refused(
    measure: Measure, bundle: edgeact.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = device_fields(bundle)
    fields["golden"] = [clip | {"logits": {"not_measured": "no time"}} for clip in fields["golden"]]
    with_agent(monkeypatch, WRITE.format(json.dumps(fields)))
    with pytest.raises(DeviceError, match=r"sent results that are refused: golden clip '.*' has no logits \(no time\)"):
        measure()


def test_hostile_progress_is_not_drawn(
    server: Server, measure: Measure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(
        f"print('{json.dumps({'progress': value})}');"
        for value in (["[bold]x[/nope]", 1, 2], ["x", 10**18, 3], ["x", -5, -9], ["y", 1, "2"])
    )
    with_agent(monkeypatch, lines.replace("\\", "\\\\") + "raise SystemExit('end')")
    with pytest.raises(DeviceError, match="end"):
        measure(progress=True)
    assert "bold x  nope" in capsys.readouterr().err


def test_a_users_mistake_needs_no_device(bundle: edgeact.Bundle, tmp_path: Path, videos: Path) -> None:
    with pytest.raises(InputError, match="write ssh://user@host"):
        measure_on("nano", bundle)
    with pytest.raises(InputError, match="rounds is 0"):
        measure_on("ssh://nano", bundle, rounds=0)
    with pytest.raises(InputError, match="minutes is -1"):
        measure_on("ssh://nano", bundle, minutes=-1)
    with pytest.raises(InputError, match="no such folder"):
        measure_on("ssh://nano", bundle, data=tmp_path / "absent")


def test_a_video_that_the_device_cannot_use(
    server: Server, measure: Measure, bundle: edgeact.Bundle, monkeypatch: pytest.MonkeyPatch, videos: Path
) -> None:
    broken = bundle.reference().ids[3]
    original = device.data_items
    monkeypatch.setattr(device, "data_items", lambda found: original(found) | {f"data/{broken}": Item.of(b"no video")})
    with pytest.raises(VideoError, match=f"on device: .*{broken}"):
        measure(data=videos)
    results = measure(data=videos, on_corrupt="skip")
    assert isinstance(results.evaluation, EvaluationOutputs)
    assert len(results.evaluation.ids) == 23
    assert broken in results.skipped[0]


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "edgeact", "validate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_line(server: Server, python: str, bundle: edgeact.Bundle) -> None:
    reach = ["--device", server.device, "--python", python, "--ssh-config", server.config]
    done = run(bundle.path, *reach, "--rounds", "1", "--threads", "1", "--minutes", "0.02", "--quiet", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["held"]
    assert len(report["sustained"]["windows"]) == 3
    assert not server.cache.exists()
    short = run(bundle.path, *reach, "--rounds", "1", "--min-sqnr", "900", "--quiet")
    assert short.returncode == 1, short.stderr
    assert "below 900 dB" in short.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["--results", "r.json", "--device", "ssh://nano"],
            "--device says how to run the bundle there, --results FILE",
        ),
        (["--results", "r.json", "--minutes", "1"], "--minutes says how to run the bundle here, --results FILE"),
        (["--keep"], "--keep says how to reach a device: give --device ssh://user@host too"),
        (["--python", "python3"], "--python says how to reach a device"),
        (["--ssh-config", "f"], "--ssh-config says how to reach a device"),
        (["--device", "nano"], "--device 'nano': write ssh://user@host"),
        (["--minutes", "0"], "minutes is 0: a sustained run takes more than 0"),
    ],
)
def test_what_does_not_go_together(
    bundle: edgeact.Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["validate", str(bundle.path), *arguments])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


def test_minutes_here(bundle: edgeact.Bundle) -> None:
    report = edgeact.validate(bundle, rounds=1, threads=1, minutes=0.01)
    assert isinstance(report.sustained, Sustained)
    assert report.sustained.windows[0].clips >= 1
