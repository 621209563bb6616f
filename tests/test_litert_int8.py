"""int8 on LiteRT: what is in the .tflite, what XNNPACK takes of it, and how closely it follows the int8 program."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from int8_networks import calibrated
from torch import Tensor, nn
from torch.nn import functional

from edgeact._capture import behind_uint8, lower_and_prove, quiet_torchao, run_program
from edgeact.clip import ClipSpec
from edgeact.numerics import compare_outputs
from edgeact.runtime import load_runner
from edgeact.targets import Request, get_target

with quiet_torchao():
    from edgeact.placement import Placement
from edgeact.quantize.annotate import SchemeQuantizer

SPEC = ClipSpec(frames=2, short_side=24, crop_height=24, crop_width=24)
WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}


class Gated(nn.Module):
    """What CSN does not have: squeeze-excitation, gates, groups, a pool over time, averages, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv3d(3, 8, 3, (1, 2, 2), 1)
        self.depthwise, self.group = nn.Conv3d(8, 8, 3, 1, 1, groups=8), nn.Conv3d(16, 16, 3, 1, 1, groups=4)
        self.squeeze, self.excite = nn.Conv3d(8, 4, 1), nn.Conv3d(4, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, clip: Tensor) -> Tensor:
        x = functional.hardswish(self.stem(clip))
        y = functional.silu(self.depthwise(x))
        gate = self.excite(self.squeeze(functional.adaptive_avg_pool3d(y, 1)).relu())
        x = torch.cat([y * gate.sigmoid() * functional.hardsigmoid(gate), functional.max_pool3d(x, 3, 1, 1)], 1)
        x = functional.avg_pool3d(functional.leaky_relu(self.group(x)), (1, 2, 2))
        logits: Tensor = self.head(x.mean((2, 3, 4)))
        return logits


class Tflite:
    """The operators and tensors of a .tflite."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        self.model = flatbuffer_utils.read_model(str(path))
        graph = self.model.subgraphs[0]
        names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
        types = {value: name for name, value in vars(schema.TensorType).items()}
        codes = [names[code.builtinCode] for code in self.model.operatorCodes]
        self.ops = [
            (codes[op.opcodeIndex], [graph.tensors[i] for i in op.inputs if i >= 0], graph.tensors[op.outputs[0]])
            for op in graph.operators
        ]
        self.types = {
            (name, (*(types[tensor.type] for tensor in inputs), types[output.type]))
            for name, inputs, output in self.ops
            if name in WEIGHTED
        }


def compiled(model: nn.Module, folder: Path, form: str = "unrolled") -> tuple[Any, list[Any]]:
    """The lowered int8 program of `model`, compiled to `folder`, and clips."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (1, *SPEC.clip_shape), dtype=np.uint8) for _ in range(4)]
    target = get_target("litert")
    assert target.scheme is not None
    network = calibrated(model, clips, SPEC, target.scheme)
    program = lower_and_prove(behind_uint8(network, SPEC), form, clips[0])
    target.compile(program, folder, Request("int8"))
    return program, clips


@pytest.mark.parametrize("form", ["unrolled", pytest.param("folded", marks=pytest.mark.slow)])
def test_every_weighted_op_is_int8_and_xnnpack_takes_all(form: str, tmp_path: Path) -> None:
    program, clips = compiled(Gated(), tmp_path, form)
    file = Tflite(tmp_path / "model.tflite")
    assert {name for name, *_ in file.types} == WEIGHTED
    assert {types for _, types in file.types} <= {("INT8", "INT8", "INT32", "INT8"), ("INT8", "INT8", "INT8")}
    for name, (_, weight, *_), _ in (op for op in file.ops if op[0] in WEIGHTED):
        assert len(weight.quantization.scale) == weight.shape[3 if name == "DEPTHWISE_CONV_2D" else 0]
        assert not np.any(weight.quantization.zeroPoint)
    assert form == "folded" or "TRANSPOSE" not in {name for name, *_ in file.ops}
    reference = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    Interpreter(str(tmp_path / "model.tflite"), experimental_op_resolver_type=reference).allocate_tensors()
    runner = load_runner("litert", tmp_path, SPEC, 1)
    placement = runner.placement()
    assert isinstance(placement, Placement)
    assert placement.fallback == ()
    assert not [name for name in placement.kernels if name.startswith("outside CAST")]
    assert {unit.partition(" ")[0] for layer in placement.layers for unit in layer.units} == {"XNNPACK"}
    assert {name for name, kind in Gated().named_modules() if isinstance(kind, nn.Conv3d | nn.Linear)} <= {
        layer.name for layer in placement.layers
    }
    lowered = run_program(program)
    expected, found = (np.concatenate([run(clip) for clip in clips]) for run in (lowered, runner))
    assert found.dtype == np.float32
    sqnr_db, _, _ = compare_outputs(expected, found)
    assert sqnr_db > 40


def test_a_float_convolution_is_a_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs, in_float = SchemeQuantizer._specs, ("conv3d_1", "adaptive_avg_pool3d")  # before int8 it would become int8
    monkeypatch.setattr(
        SchemeQuantizer, "_specs", lambda self, node: None if node.name in in_float else specs(self, node)
    )
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.ReLU(), nn.Conv3d(4, 4, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    compiled(model, tmp_path)
    placement = load_runner("litert", tmp_path, SPEC, 1).placement()
    assert isinstance(placement, Placement)
    assert placement.fallback_ops == SPEC.frames
    assert set(placement.fallback) == {"2 (CONV_2D, in float)"}


def test_weights_are_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 32, (3, 9, 9), padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    compiled(model, tmp_path)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert (tmp_path / "model.tflite").stat().st_size < 3 * weights
