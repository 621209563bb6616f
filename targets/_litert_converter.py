"""litert-torch in a process of its own: `python -m … PROGRAM ARTIFACT PRECISION [integers]`; see `litert.convert`."""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import fx

from edgeact.targets import _litert_int8, _litert_kernels, _tflite

__all__ = ["convert"]

_aten = torch.ops.aten
_quantized = torch.ops.quantized_decomposed


def convert(program: Path, artifact: Path, precision: str, *, integers: bool) -> None:
    """Convert the saved program (uint8 `clip_BTHWC` -> `logits_BK`, 2-D) and write the .tflite."""
    import litert_torch

    exported = torch.export.load(program)
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    _pad_max_pools_with_zeros(module.graph)
    module.recompile()
    scales = None
    if precision == "int8":
        _litert_int8.quantize_in_the_graph(module)
        _litert_kernels.drop_idle_moves(module)
        _litert_kernels.replace_means_of_frames(module)
        _litert_kernels.replace(module, integers=integers)
        _litert_int8.normalise_in_int8(module)
        _litert_int8.keep_pads_in_layout()
        scales = _litert_int8.read_scales()
    clip = next(node for node in exported.graph.nodes if node.name == exported.graph_signature.user_inputs[0])
    example = torch.zeros(tuple(clip.meta["val"].shape), dtype=torch.uint8)
    _name_by_layer()
    litert_torch.convert(module, (example,), quant_config=scales).export(str(artifact))
    if precision == "fp16":
        _store_fp16(artifact)
    _tflite.finish(artifact, int8=precision == "int8")


def _name_by_layer() -> None:
    """Have the converter name what each op gives `layer1.0.conv2/conv2d`, in place of the classes of the modules."""
    from litert_torch.backend import debuginfo

    def build_mlir_debuginfo(node: fx.Node) -> str:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0] if stack else ""
        op = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
        return f"{path}/{op}"

    debuginfo.build_mlir_debuginfo = build_mlir_debuginfo


def _pad_max_pools_with_zeros(graph: fx.Graph) -> None:
    """`max_pool2d(x, padding=p)` as `max_pool2d(pad(x, zeros))`, equal where nothing in x is below zero.

    The converter pads with minus infinity, or the least int8 (PADV2), which XNNPACK does not take; it takes a PAD with
    zeros.
    """
    for pool in graph.find_nodes(op="call_function", target=_aten.max_pool2d.default):
        x, kernel, stride, *given = pool.args
        padding, *rest = given or [[0, 0]]
        if not any(padding) or not _is_never_negative(x):
            continue
        height, width = padding
        with graph.inserting_before(pool):
            padded = graph.call_function(_aten.constant_pad_nd.default, (x, [width, width, height, height], 0.0))
            if x.target is not _aten.relu.default:
                scale = x.args[1:]
                quantized = graph.call_function(_quantized.quantize_per_tensor.default, (padded, *scale))
                padded = graph.call_function(x.target, (quantized, *scale))
        pool.args = (padded, kernel, stride, [0, 0], *rest)


def _is_never_negative(x: fx.Node) -> bool:
    """Whether it is a ReLU's output, rounded or not, or dequantized with the zero at the least integer."""
    if str(x.target) != "quantized_decomposed.dequantize_per_tensor.default":
        return x.target is _aten.relu.default
    stored: Any = x.args[0]
    _, _, zero_point, least, *_ = x.args
    return bool(zero_point == least or (stored.op == "call_function" and stored.args[0].target is _aten.relu.default))


def _store_fp16(path: Path) -> None:
    """Weights as float16 behind DEQUANTIZE ops, which XNNPACK folds into its kernels' weights."""
    from ai_edge_quantizer import quantizer, recipe_manager
    from ai_edge_quantizer.qtyping import (
        ComputePrecision,
        OpQuantizationConfig,
        TensorQuantizationConfig,
        TFLOperationName,
    )

    recipes = recipe_manager.RecipeManager()
    config = OpQuantizationConfig(
        weight_tensor_config=TensorQuantizationConfig(num_bits=16, dtype="FLOAT"),
        compute_precision=ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    for op in (TFLOperationName.CONV_2D, TFLOperationName.DEPTHWISE_CONV_2D, TFLOperationName.FULLY_CONNECTED):
        recipes.add_quantization_config(
            regex=".*", operation_name=op, op_config=config, algorithm_key=recipe_manager.AlgorithmName.FLOAT_CASTING
        )
    work = quantizer.Quantizer(str(path), recipes.get_quantization_recipe())
    work.quantize().export_model(str(path), overwrite=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # JAX and the converter warn of their own deprecated calls
    # the caller reads a traceback's last line
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], integers=sys.argv[4:] == ["integers"])
