"""coremltools in a process of its own: `python -m edgeact.targets._coreml_converter` with the arguments of `convert`.

It writes `model.mlpackage`, `model.operators.json` and `placement.json`.
"""

import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from edgeact.placement import PlacedOp, Placement, write_placement
from edgeact.targets._coreml_program import as_images, layers_of, untranslated
from edgeact.targets._neural_engine_rules import CPU_OR_GPU, MOVES, NEURAL_ENGINE, refused

__all__ = ["convert", "placed"]

_PIXEL_BYTES = 4  # of a CVPixelBuffer, BGRA
_CONSTANT = ("const", "constexpr_")


def convert(program: Path, folder: Path, deployment: str, activations: str) -> None:
    """Convert the saved program (uint8 `clip_BTHWC` -> `logits_BK`) and write what the artifact is made of."""
    import coremltools

    images = as_images(torch.export.load(program), activations=activations == "int8")
    layers = layers_of(images)
    if strange := untranslated(images.graph, final=True):
        where = layers.get(strange[0].name) or "the network's own forward"
        raise SystemExit(f"{strange[0].target} of {where}: coremltools has no translation of this op")
    inputs = images.graph_signature.user_inputs
    shapes = [tuple(node.meta["val"].shape) for node in images.graph.nodes if node.name in inputs]
    model = coremltools.convert(
        images,
        convert_to="mlprogram",
        inputs=[
            coremltools.ImageType(name=f"frame_{t}", shape=shape, color_layout=coremltools.colorlayout.RGB)
            for t, shape in enumerate(shapes)
        ],
        outputs=[coremltools.TensorType(name="logits", dtype=float)],
        minimum_deployment_target=getattr(coremltools.target, deployment),
        compute_precision=coremltools.precision.FLOAT16,
        skip_model_load=True,
    )
    function = model._mil_program.functions["main"]
    kinds = Counter(op.op_type for op in function.operations if not op.op_type.startswith(_CONSTANT))
    told = {"deployment": deployment, "operators": dict(kinds.most_common())}
    (folder / "model.operators.json").write_text(json.dumps(told, indent=1) + "\n")
    write_placement(folder, placed(function, layers))
    package = folder / "model.mlpackage"
    model.save(str(package))
    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # of ExecuTorch's programs; here empty


def placed(function: Any, layers: dict[str, str]) -> Placement:
    """Where the operators of a function of MIL run, by what is known of the Neural Engine.

    Args:
        function: Of an mlprogram.
        layers: Path of the user's module by the name of the op that the operator was made of, and of the `logits`.
    """
    ops, away = [], {}
    results = {value.name for value in function.outputs}
    for op in function.operations:
        kind = op.op_type
        if kind.startswith(_CONSTANT):
            continue
        data = [value for value in _inputs(op) if value.val is None]
        away[op] = ""
        if kind in MOVES:
            continue
        away[op] = refused(kind, [tuple(value.shape) for value in (*data, *op.outputs)], _kernel(op))
        name = op.outputs[0].name
        origin = name.removesuffix("_cast_fp16")
        if origin not in layers and _moved(op.outputs[0]).name in results:
            origin = "logits"
        ops.append(
            PlacedOp(
                name=name,
                kernel=kind,
                unit=CPU_OR_GPU if away[op] else NEURAL_ENGINE,
                layer=layers.get(origin),
                fallback=away[op],
            )
        )
    return Placement.of(ops, "estimated", _crossing_bytes(function, away))


def _moved(value: Any) -> Any:
    """What becomes of a value that is only moved or retyped: the logits may be quantized and cast."""
    while len(value.child_ops) == 1 and value.child_ops[0].op_type in MOVES:
        value = value.child_ops[0].outputs[0]
    return value


def _inputs(op: Any) -> list[Any]:
    """The values that an operator reads, constants among them."""
    values: list[Any] = []
    for value in op.inputs.values():
        values += value if isinstance(value, list | tuple) else [value]
    return [value for value in values if value is not None and hasattr(value, "child_ops")]


def _kernel(op: Any) -> list[int]:
    if "kernel_sizes" in op.inputs:
        return [int(size) for size in op.kernel_sizes.val]
    return [int(size) for size in op.weight.shape[2:]] if op.op_type.startswith("conv") else []


def _crossing_bytes(function: Any, away: dict[Any, str]) -> int:
    """The images and the logits, and every value between an operator that leaves the engine and one that does not."""
    images = sum(_PIXEL_BYTES * value.shape[-2] * value.shape[-1] for value in function.inputs.values())
    crossing = sum(_bytes(value) for value in function.outputs)
    for op, why in away.items():
        for value in op.outputs:
            if any(bool(away[reader]) != bool(why) for reader in value.child_ops if reader in away):
                crossing += _bytes(value)
    return int(images + crossing)


def _bytes(value: Any) -> int:
    size = 1
    for length in value.shape:
        size *= int(length)
    return size * (4 if "32" in str(value.dtype) or "double" in str(value.dtype) else 2)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # coremltools warns of versions that it was not tested with
    with torch.no_grad():
        convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])  # the caller reads the last line
