import json
import pickle
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgeact.checkpoint import Checkpoint, load_checkpoint, load_weights_, read_state_dict, save_checkpoint
from edgeact.clip import ClipSpec
from edgeact.errors import CheckpointError, MissingDependencyError


def make_checkpoint() -> Checkpoint:
    return Checkpoint(
        model="ir_csn_26",
        options={"width": 0.125},
        spec=ClipSpec(frames=4),
        labels=("left", "rechts/λ"),
        training={"curves": [{"epoch": 0.0, "val_top1": 0.5}]},
        state={"fc.weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)},
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    before = make_checkpoint()
    save_checkpoint(tmp_path / "new" / "model.safetensors", before)
    after = load_checkpoint(tmp_path / "new" / "model.safetensors")
    assert (after.model, after.options, after.spec, after.labels) == (
        before.model,
        before.options,
        before.spec,
        before.labels,
    )
    assert after.training == before.training
    assert all(torch.equal(after.state[name], before.state[name]) for name in before.state)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]) -> None:
    with full_disk(), pytest.raises(CheckpointError, match=r"new\.safetensors cannot be written: .*File too large"):
        save_checkpoint(tmp_path / "new.safetensors", replace(make_checkpoint(), state={"w": torch.zeros(64, 64)}))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    message = (
        r"reading or writing a checkpoint needs safetensors, which is not installed: pip install 'edgeact\[export\]'"
    )
    with pytest.raises(MissingDependencyError, match=message):
        save_checkpoint(tmp_path / "new.safetensors", make_checkpoint())
    with pytest.raises(MissingDependencyError, match=message):
        load_checkpoint(tmp_path / "new.safetensors")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder, not a file"):
        load_checkpoint(tmp_path)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="is not a safetensors checkpoint"):
        load_checkpoint(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="no edgeact metadata: give --model"):
        load_checkpoint(tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "damaged edgeact metadata"),
        (json.dumps({"version": 9}), "has checkpoint version 9, this edgeact reads 1"),
        (json.dumps({"version": 1, "model": "c3d"}), "damaged edgeact metadata: 'options'"),
        (
            json.dumps({"version": 1, "model": "c3d", "options": {}, "spec": {"frames": 4}, "labels": []}),
            "damaged edgeact metadata: a ClipSpec has the fields",
        ),
    ],
)
def test_damaged_metadata(tmp_path: Path, metadata: str, message: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"edgeact": metadata})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "x.safetensors")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (Path("/tmp/edgeact-was-here"),))  # type: ignore[return-value]


def test_a_pickle_is_parsed_and_never_executed(tmp_path: Path) -> None:
    marker = Path("/tmp/edgeact-was-here")
    marker.unlink(missing_ok=True)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(CheckpointError, match="holds no weights that can be read safely"):
        read_state_dict(tmp_path / "evil.pt")
    assert not marker.exists()


def test_plain_weights_are_unwrapped(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"module.fc.bias": torch.ones(2)}}, tmp_path / "a.pt")
    assert list(read_state_dict(tmp_path / "a.pt")) == ["fc.bias"]
    save_file({"fc.bias": torch.ones(2)}, tmp_path / "a.safetensors")
    assert list(read_state_dict(tmp_path / "a.safetensors")) == ["fc.bias"]
    torch.save({"epoch": 3}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="is no state dict: it must map names to tensors"):
        read_state_dict(tmp_path / "b.pt")


def test_weights_of_another_model_are_refused() -> None:
    model = torch.nn.Linear(2, 3)
    with pytest.raises(
        CheckpointError, match=r"f\.pt holds weights of another model: 1 tensors missing \(first: bias\)"
    ):
        load_weights_(model, {"weight": torch.zeros(3, 2)}, source="f.pt")
    with pytest.raises(CheckpointError, match=r"weight has shape \(2, 2\), the model wants \(3, 2\)"):
        load_weights_(model, {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, source="f.pt")
    load_weights_(model, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, source="f.pt")
    assert model.weight.sum() == 6
