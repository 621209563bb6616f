"""ONNX Runtime in a process of its own: nothing is left behind, and its threads sleep between two runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeact.runtime._onnxruntime import import_onnxruntime, session_options

pytest.importorskip("onnxruntime")


def test_nothing_is_left_where_it_was_imported(tmp_path: Path) -> None:
    program = "from edgeact.runtime._onnxruntime import *; import_onnxruntime().InferenceSession"
    folders = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    env = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    subprocess.run([sys.executable, "-B", "-c", program], env=env | folders, cwd=tmp_path, check=True)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(("asked", "found"), [(None, "1"), ("0", "0")])
def test_a_users_own_choice_holds(asked: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "")  # so that it is put back
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY") if asked is None else monkeypatch.setenv("ORT_DISABLE_TELEMETRY", asked)
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == found


def test_its_threads_do_not_spin() -> None:
    options = session_options(3)
    assert options.intra_op_num_threads == 3
    for pool in ("intra_op", "inter_op"):
        assert options.get_session_config_entry(f"session.{pool}.allow_spinning") == "0"
