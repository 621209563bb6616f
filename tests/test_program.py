"""A network as data: what is written is read back equal, and nothing in a stranger's file is ever run."""

import functools
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeact._program
from edgeact._capture import behind_uint8, eager, fold, run_program
from edgeact._program import GRAPH, WEIGHTS, is_float16, read_program, write_program
from edgeact.clip import ClipSpec
from edgeact.errors import BundleError, MissingDependencyError, ToolchainError
from edgeact.targets._float16 import in_float16

SPEC = ClipSpec(frames=4, frame_stride=2, short_side=20, crop_height=16, crop_width=16)
SHAPE = (1, *SPEC.clip_shape)


class Network(nn.Module):
    """In-place and composite ops, several results of one op, constants made within, and a mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3, 1, 1), nn.BatchNorm3d(8), nn.ReLU(inplace=True), nn.MaxPool3d(2))
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, clip: Tensor) -> Tensor:
        x = nn.functional.gelu(self.norm(self.stem(clip)), approximate="tanh")
        first, second = x.split(1, dim=2)
        x = torch.cat([first, second.roll(1, 3)], 2) + torch.arange(8, dtype=torch.float32).view(8, 1, 1, 1)
        x = torch.where(x > 3, x, torch.full_like(x, -float("inf")).clamp(min=-1)).to(torch.float32)
        out: Tensor = self.head(nn.functional.interpolate(x, scale_factor=2, mode="trilinear").amax((2, 3, 4)))
        return out


@functools.cache
def captured() -> "torch.export.ExportedProgram":
    return behind_uint8(fold(Network().eval(), SPEC), SPEC)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    write_program(captured(), folder)
    return folder


@pytest.fixture
def written(template: Path, tmp_path: Path) -> Path:
    """A folder with the program of `Network`."""
    return Path(shutil.copytree(template, tmp_path / "program"))


@pytest.mark.parametrize("half", [False, True])
def test_it_is_read_back_equal(half: bool, tmp_path: Path) -> None:
    network = Network().eval()
    write_program(in_float16(captured()) if half else captured(), tmp_path)
    assert is_float16(tmp_path) is half
    clip = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    found = run_program(read_program(tmp_path, SHAPE))(clip)
    np.testing.assert_allclose(found, eager(network, SPEC)(clip), rtol=0, atol=2e-2 if half else 1e-5)


def test_what_gives_its_input_is_no_op_of_the_network() -> None:
    class Casts(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            return clip[:].float().double().mean((2, 3, 4)).to(torch.float32)

    ops = [node.name for node in fold(Casts(), SPEC).graph.nodes if node.op == "call_function"]
    assert ops == ["to_1", "mean", "to_2"], "to float64, the mean, and back"


def test_float16_is_a_copy() -> None:
    in_float16(captured())
    assert all(value.dtype == torch.float32 for value in captured().state_dict.values())


class Untagged(nn.Module):
    def forward(self, clip: Tensor) -> Tensor:
        return torch.special.bessel_j0(clip).as_strided((1, 5), (5, 1))


class Symbolic(nn.Module):
    def forward(self, clip: Tensor) -> Tensor:
        return torch.full((1, 5), complex(0, 1)).real + clip.mean()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Untagged(), r"no word for the op aten\.as_strided\.default: it is not one of PyTorch's core ops"),
        (Symbolic(), r"no word for an argument 1j of type complex"),
    ],
)
def test_what_has_no_word_is_refused(network: nn.Module, message: str, tmp_path: Path) -> None:
    program = torch.export.export(network, (torch.zeros(SHAPE),))
    with pytest.raises(ToolchainError, match=message):
        write_program(program, tmp_path)


def tampered(folder: Path, **changes: Any) -> None:
    """The first node of the graph with other fields."""
    told = json.loads((folder / GRAPH).read_text())
    told["nodes"][0] |= changes
    (folder / GRAPH).write_text(json.dumps(told))


@pytest.mark.parametrize(
    "op",
    [
        "from_file.default",  # reads and writes files
        "save.default",
        "add_.Tensor",  # writes
        "relu.out",
        "as_strided.default",  # reads what it was not given
        "_unsafe_index.Tensor",
        "empty.memory_format",
        "rand.default",
        "convolution_backward.default",
        "_local_scalar_dense.default",
        "__class__.__init__",
        "add.__class__",
        "add.default.__call__",
        "os.system",
        "add",
        "",
        7,
        None,
        ["add.Tensor"],
    ],
)
def test_ops_that_are_not_allowed(op: Any, written: Path) -> None:
    tampered(written, op=op, args=[{"$clip": 0}])
    with pytest.raises(BundleError, match=r"model\.json is not a program: the op .* is not allowed"):
        read_program(written, SHAPE)


CODE = "__import__('pathlib').Path('ran').touch()"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": [{"$clip": 0}, CODE]}, "the text .* is not allowed"),
        ({"kwargs": {CODE: 1}}, "the arguments .* are not allowed"),
        ({"args": [{"$dtype": CODE}]}, "__import__"),
        ({"args": [{"$clip": 0}, {"$memory": "load"}]}, "'load'"),
        ({"args": [{"as_expr": CODE}]}, "'as_expr'"),
        ({"args": [{"$node": CODE}]}, "list indices must be integers"),
        ({"args": [{"$constant": "none"}]}, "'none'"),
        ({"op": "getitem", "args": [{"$clip": 0}, "shape"]}, "getitem takes a node and a number"),
        ({"op": "getitem", "args": [[1], 0]}, "getitem takes a node and a number"),
        ({"kwargs": 3}, "'int' object has no attribute"),
        ({"args": [{"$clip": 0}, {"$clip": 0, "$node": 0}]}, "too many values"),
    ],
)
def test_arguments_that_are_not_allowed(
    changes: dict[str, Any], message: str, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tampered(written, **changes)
    monkeypatch.chdir(written)
    with pytest.raises(BundleError, match=rf"is not a program: .*{message}"):
        read_program(written, SHAPE)
    assert not (written / "ran").exists()


class Evil:
    def __reduce__(self) -> Any:
        return eval, (CODE,)


def test_nothing_is_unpickled(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written)
    for file in (WEIGHTS, GRAPH):
        kept = (written / file).read_bytes()
        for write_pickle in (lambda f: f.write_bytes(pickle.dumps(Evil())), lambda f: torch.save(Evil(), f)):
            write_pickle(written / file)
            with pytest.raises(BundleError, match="is not a program"):
                read_program(written, SHAPE)
        (written / file).write_bytes(kept)
    assert not (written / "ran").exists()
    assert read_program(written, SHAPE)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"version": 2}, "it is of version 2, and this edgeact reads 1"),
        ({"nodes": [], "logits": {"$clip": 0}}, r"it gives torch.uint8 of shape \(1, 4, 16, 16, 3\)"),
        ({"nodes": {}}, "is not a program"),
        ({"logits": [{"$clip": 0}, {"$clip": 0}]}, "too many values"),
    ],
)
def test_graphs_that_are_no_network(told: dict[str, Any], message: str, written: Path) -> None:
    graph = json.loads((written / GRAPH).read_text())
    (written / GRAPH).write_text(json.dumps(graph | told))
    with pytest.raises(BundleError, match=message):
        read_program(written, SHAPE)


def test_a_clip_or_file_that_does_not_fit(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="is not a program: "):
        read_program(written, (1, 1, 1, 1, 1))
    monkeypatch.setattr(edgeact._program, "_MAX_GRAPH_BYTES", 100)
    with pytest.raises(BundleError, match="it is larger than"):
        read_program(written, SHAPE)


@pytest.mark.parametrize("package", ["torch", "safetensors.torch"])
def test_a_missing_package_names_its_extra(package: str, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeact\[aotinductor\]'"):
        read_program(written, SHAPE)
