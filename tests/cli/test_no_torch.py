"""A device has no torch: validating and running a bundle works without it, and exporting says what to install."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgeact.cli import main

ROOT = Path(__file__).parents[2]
ABSENT = ("torch", "safetensors", "jinja2", "matplotlib", "PIL", "onnx", "onnxscript")

# Refuses these packages before any import of edgeact, as if they were not installed.
BLOCKED = f"""
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Absent())
from edgeact.cli import main
try:
    main(sys.argv[1:])
finally:
    assert not [name for name in sys.modules if name.partition(".")[0] in {ABSENT!r}]
"""


@pytest.fixture(scope="module")
def bundle(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("device")
    network = ["--model", "ir_csn_26", "--option", "width=0.125", "--frames", "4", "--short-side", "36", "--crop", "32"]
    gates = ["--min-sqnr", "60", "--min-agreement", "0", "--max-drop", "100"]
    quick = ["--target", "openvino", "--threads", "1", "--rounds", "1", "--quiet", "--name", "tiny"]
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        main(["export", *network, *gates, *quick, "--data", str(videos), "--out", str(out)])
    signal.signal(signal.SIGTERM, handler)
    assert stopped.value.code == 0
    return out / "tiny"


def check_device(python: Sequence[str], bundle: Path, videos: Path, tmp_path: Path) -> None:
    """What a device does, by `python` (a command line that takes edgeact's arguments)."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def edgeact(status: int, *arguments: str | Path) -> tuple[str, str]:
        command = [*python, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == status, done.stderr
        return done.stdout, done.stderr

    quick = ("--threads", "1", "--rounds", "1", "--quiet")
    report = json.loads(edgeact(0, "validate", bundle, "--data", videos, *quick, "--json")[0])
    assert report["held"]
    assert report["accuracy"]["n"] == 24
    assert "4 golden videos give the export's frames to the bit" in " ".join(report["notes"])
    assert "held" in edgeact(0, "validate", bundle, *quick)[0].lower()
    video = next((bundle / "golden").glob("*.mp4"))
    windows = [
        json.loads(line) for line in edgeact(0, "run", bundle, video, "--threads", "1", "--json")[0].splitlines()
    ]
    assert len(windows[0]["scores"]) == 3
    targets = {target["name"]: target["runs_here"] for target in json.loads(edgeact(0, "targets", "--json")[0])}
    assert targets["openvino"] is True
    needs_torch = "error: building a network needs torch, which is not installed: pip install 'edgeact[export]'\n"
    assert edgeact(2, "export", "--target", "openvino", "--out", tmp_path / "out") == ("", needs_torch)
    assert edgeact(2, "models") == ("", needs_torch)
    saved = tmp_path / "t" / "m.safetensors"
    training = ("train", "--model", "ir_csn_26", "--data", videos, "--out", saved)
    assert edgeact(2, *training) == ("", needs_torch)
    pillow = "error: drawing labels on a video needs pillow, which is not installed: pip install 'edgeact[report]'\n"
    assert edgeact(2, "run", bundle, video, "--threads", "1", "--save", tmp_path / "saved.mp4")[1] == pillow
    assert not list(tmp_path.iterdir())


def test_a_device_without_torch(bundle: Path, videos: Path, tmp_path: Path) -> None:
    check_device([sys.executable, "-c", BLOCKED], bundle, videos, tmp_path)


@pytest.mark.slow
def test_a_fresh_environment_without_torch(
    bundle: Path, videos: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As above in a virtual environment that holds the base install and one runtime, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    for name in ("edgeact", "quantize", "targets"):  # built from a copy: setuptools writes into the tree that it builds
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    install = ["-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), f"{folder / 'source'}[openvino]"]
    done = subprocess.run([str(python), *install], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for package in ABSENT:
        done = subprocess.run([str(python), "-c", f"import {package}"], capture_output=True, text=True, cwd="/")
        assert done.returncode == 1
        assert f"No module named '{package}'" in done.stderr
    check_device([str(folder / "venv" / "bin" / "edgeact")], bundle, videos, tmp_path)
