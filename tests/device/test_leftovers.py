"""What a run leaves on the device: nothing, whatever its runtime keeps for itself."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ssh_server import Server
from torch import nn

import edgeact
from edgeact.clip import ClipSpec
from edgeact.device import measure_on

pytest.importorskip("onnxruntime")

# A module that keeps its files where the variables say, and tells where that is.
_LITTERS = """
import os, tempfile
from pathlib import Path
for name, other in (("XDG_CACHE_HOME", "~/.cache"), ("CUDA_CACHE_PATH", "~/.nv"), ("TRITON_CACHE_DIR", "~/.triton")):
    folder = Path(os.environ.get(name) or Path(other).expanduser())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "litter").write_text(name)
tempfile.mkstemp()
"""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv3d(3, 4, 3), nn.Linear(4, 12)

    def forward(self, clip: Any) -> Any:
        return self.head(self.stem(clip).mean((2, 3, 4)))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home, a cache and a folder for temporary files of the device's user."""
    for name in ("home", "cache", "tmp"):
        (tmp_path / "user" / name).mkdir(parents=True)
    return tmp_path / "user"


def device_python(python: Path, home: Path) -> str:
    """The interpreter with that home; sshd sets its own."""
    script = home.with_name("python")
    places = f"HOME={home}/home XDG_CACHE_HOME={home}/cache TMPDIR={home}/tmp"
    script.write_text(f'#!/bin/sh\nunset ORT_DISABLE_TELEMETRY\nexec env {places} {python} "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_a_proxy_of_onnx_runtime_leaves_nothing(
    server: Server, make_python: Callable[..., Path], home: Path, videos: Path, tiny_spec: ClipSpec, tmp_path: Path
) -> None:
    gates = edgeact.Gates(min_sqnr_db=60, min_agreement=0, max_drop_pt=100)
    quick: dict[str, Any] = {"gates": gates, "threads": 1, "rounds": 1, "out": tmp_path, "clips": 12}
    bundle = edgeact.export(Small(), target="jetson", precision="fp32", spec=tiny_spec, data=videos, **quick)
    plain = make_python("numpy", "av", "onnxruntime", "flatbuffers", "protobuf", "packaging")
    subprocess.run([plain, "-c", "import onnxruntime"], env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"}, check=True)
    python = device_python(plain, home)
    results = measure_on(
        server.device, bundle, threads=1, rounds=1, minutes=0.01, python=python, ssh_config=server.config
    )
    assert results.runtime.name == "onnxruntime"
    assert [path for path in home.rglob("*") if not path.is_dir()] == []
    assert list((home / "cache").iterdir()) == []
    assert sorted(path.name for path in home.iterdir()) == ["cache", "home", "tmp"]


def test_what_the_imported_modules_write_is_removed(server: Server, home: Path, tmp_path: Path) -> None:
    from edgeact._address import Address
    from edgeact._ssh import Connection

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "litters.py").write_text(_LITTERS)
    script = tmp_path / "with_site"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec {device_python(Path(sys.executable), home)} "$@"\n')
    script.chmod(0o755)
    with Connection(Address("device"), python=str(script), ssh_config=server.config) as connection:
        assert connection.ask("probe", modules=["litters"])["modules"]["litters"]["version"] == "of unknown version"
    assert [path for path in home.rglob("*") if not path.is_dir()] == []
    assert list((home / "tmp").iterdir()) == []
