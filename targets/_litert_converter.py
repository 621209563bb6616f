"""litert-torch in a process of its own: `python -m edgeact.targets._litert_converter PROGRAM ARTIFACT PRECISION`."""

import sys
import warnings
from pathlib import Path

import torch
from torch import fx

__all__ = ["convert"]


def convert(program: Path, artifact: Path, precision: str) -> None:
    """Convert the saved program (uint8 `clip_BTHWC` -> `logits_BK`, 2-D) and write the .tflite."""
    import litert_torch

    exported = torch.export.load(program)
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    _pad_max_pools_with_zeros(module.graph)
    module.recompile()
    clip = next(node for node in exported.graph.nodes if node.name == exported.graph_signature.user_inputs[0])
    example = torch.zeros(tuple(clip.meta["val"].shape), dtype=torch.uint8)
    litert_torch.convert(module, (example,)).export(str(artifact))
    if precision == "fp16":
        _store_fp16(artifact)


def _pad_max_pools_with_zeros(graph: fx.Graph) -> None:
    """`max_pool2d(relu(x), padding=p)` as `max_pool2d(pad(relu(x), zeros))`, equal since nothing is below zero.

    The converter pads with minus infinity (PADV2), which XNNPACK does not take; it takes a PAD with zeros.
    """
    aten = torch.ops.aten
    for pool in graph.find_nodes(op="call_function", target=aten.max_pool2d.default):
        x, kernel, stride, *given = pool.args
        padding, *rest = given or [[0, 0]]
        if not any(padding) or x.target is not aten.relu.default:
            continue
        height, width = padding
        with graph.inserting_before(pool):
            padded = graph.call_function(aten.constant_pad_nd.default, (x, [width, width, height, height], 0.0))
        padded.meta["val"] = torch.nn.functional.pad(x.meta["val"], (width, width, height, height))
        pool.args = (padded, kernel, stride, [0, 0], *rest)


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
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])  # the caller reads the traceback's last line
