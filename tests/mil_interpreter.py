"""Runs the operators of a Core ML program with PyTorch, as its documentation defines them: no Mac is needed.

Values are rounded to the type that the program gives them after every operator, so float16 is in it. It tells of the
numerics of what coremltools wrote, and nothing of the Neural Engine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["load", "run"]

_TYPES = {"fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8, "uint8": torch.uint8, "int32": torch.int32}


def load(package: Path) -> Any:
    """The function `main` of a saved .mlpackage."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load as read

    model = coremltools.models.MLModel(str(package), skip_model_load=True)
    spec = model.get_spec()
    program = read(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    return program.functions["main"]


def run(function: Any, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits `[1, K]` of a uint8 clip `[1, T, H, W, 3]`, whose frames are the inputs `frame_t`."""
    values: dict[str, Tensor] = {
        f"frame_{t}": torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)[None])).float()
        for t, frame in enumerate(clip[0])
    }
    assert set(values) == set(function.inputs)
    with torch.inference_mode():
        for op in function.operations:
            if op.op_type == "const":
                continue
            given = {name: _value(value, values) for name, value in op.inputs.items() if name != "name"}
            found = _OPS[op.op_type](**{name: value for name, value in given.items() if value is not None})
            for output, value in zip(op.outputs, found if isinstance(found, tuple) else (found,), strict=True):
                values[output.name] = _rounded(value, str(output.dtype))
                assert tuple(values[output.name].shape) == tuple(output.shape), op
    logits: NDArray[np.float32] = values[function.outputs[0].name].float().numpy()
    return logits


def _value(value: Any, values: dict[str, Tensor]) -> Any:
    if isinstance(value, list | tuple):
        return [_value(each, values) for each in value]
    if value is None:
        return None
    if value.name in values:
        return values[value.name]
    assert value.val is not None, f"nothing gives {value.name}"
    if isinstance(value.val, np.ndarray):
        found = torch.from_numpy(value.val.copy())
        return found.float() if found.is_floating_point() else found
    return value.val


def _rounded(value: Tensor, kind: str) -> Tensor:
    """To the type of the program, then in float32, in which PyTorch computes on; integers as they are."""
    if "int8" in kind:
        return value
    return value.half().float() if "fp16" in kind else value.float()


def _numbers(values: Any) -> list[int]:
    return [int(value) for value in values]


def _sides(pad: Any, pad_type: str = "custom") -> list[int]:
    """Padding per axis, as PyTorch orders it: the last axis first."""
    assert pad_type in ("custom", "valid"), pad_type
    pairs = np.array(_numbers(pad)).reshape(-1, 2)[::-1]
    return _numbers(pairs.reshape(-1)) if pad_type == "custom" else [0] * pairs.size


def _conv(
    x: Tensor, weight: Tensor, strides: Any, pad_type: str, pad: Any, dilations: Any, groups: Any, bias: Any = None
) -> Tensor:
    convolve: Callable[..., Tensor] = functional.conv2d if x.ndim == 4 else functional.conv3d
    padded = functional.pad(x, _sides(pad, pad_type))
    return convolve(padded, weight.float(), bias, _numbers(strides), 0, _numbers(dilations), int(groups))


def _max_pool(x: Tensor, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any, ceil_mode: Any) -> Tensor:
    assert not ceil_mode
    padded = functional.pad(x, _sides(pad, pad_type), value=-torch.inf)
    pool: Callable[..., Tensor] = functional.max_pool2d if x.ndim == 4 else functional.max_pool3d
    return pool(padded, _numbers(kernel_sizes), _numbers(strides))


def _avg_pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any,
    pad_type: str,
    pad: Any,
    ceil_mode: Any,
    exclude_padding_from_average: Any,
) -> Tensor:
    assert not ceil_mode
    assert not any(_sides(pad, pad_type))
    pool: Callable[..., Tensor] = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
    return pool(x, _numbers(kernel_sizes), _numbers(strides))


def _slice(
    x: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    index: list[Any] = []
    for axis in range(x.ndim):
        if squeeze_mask is not None and squeeze_mask[axis]:
            index.append(int(begin[axis]))
            continue
        first = None if begin_mask is not None and begin_mask[axis] else int(begin[axis])
        last = None if end_mask is not None and end_mask[axis] else int(end[axis])
        index.append(slice(first, last, int(stride[axis]) if stride is not None else 1))
    return x[tuple(index)]


def _batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5
) -> Tensor:
    return functional.batch_norm(x, mean.float(), variance.float(), gamma, beta, eps=float(epsilon))


def _along(value: Any, axis: Any, rank: int) -> Tensor:
    """A scale or a zero point beside a tensor of `rank`."""
    value = torch.as_tensor(value).float()
    return value if value.ndim == 0 else value.reshape([-1 if i == int(axis) else 1 for i in range(rank)])


def _quantize(input: Tensor, scale: Any, output_dtype: str, zero_point: Any = 0, axis: Any = None) -> Tensor:
    least, most = {"int8": (-128, 127), "uint8": (0, 255)}[str(output_dtype)]
    steps = torch.round(input / _along(scale, axis, input.ndim)) + _along(zero_point, axis, input.ndim)
    return steps.clamp(least, most)


def _dequantize(input: Tensor, scale: Any, zero_point: Any = 0, axis: Any = None) -> Tensor:
    return (input.float() - _along(zero_point, axis, input.ndim)) * _along(scale, axis, input.ndim)


def _constexpr(quantized_data: Tensor, zero_point: Any, scale: Any, axis: Any) -> Tensor:
    return _dequantize(quantized_data, scale, zero_point, axis)


def _blockwise(data: Tensor, scale: Tensor, offset: Any = None) -> Tensor:
    for axis in range(data.ndim):  # a scale for each block along every axis
        scale = scale.repeat_interleave(data.shape[axis] // scale.shape[axis], axis)
    assert offset is None
    return data.float() * scale


def _mean(x: Tensor, axes: Any, keep_dims: Any) -> Tensor:
    return x.mean(_numbers(axes), keepdim=bool(keep_dims))


def _pad(x: Tensor, pad: Any, mode: str, constant_val: Any) -> Tensor:
    assert mode == "constant"
    return functional.pad(x, _sides(pad), value=float(constant_val))


def _beside(operator: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    return lambda x, y: operator(torch.as_tensor(x), torch.as_tensor(y))


_OPS: dict[str, Callable[..., Any]] = {
    "add": _beside(torch.add),
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cast": lambda x, dtype: x,
    "concat": lambda values, axis, interleave: torch.cat(values, int(axis)),
    "constexpr_affine_dequantize": _constexpr,
    "constexpr_blockwise_shift_scale": _blockwise,
    "conv": _conv,
    "dequantize": _dequantize,
    "expand_dims": lambda x, axes: x.reshape([*_expanded(x.shape, _numbers(axes))]),
    "linear": lambda x, weight, bias=None: functional.linear(x, weight.float(), bias),
    "max_pool": _max_pool,
    "maximum": _beside(torch.maximum),
    "mul": _beside(torch.mul),
    "pad": _pad,
    "quantize": _quantize,
    "reduce_mean": _mean,
    "relu": torch.relu,
    "reshape": lambda x, shape: x.reshape(_numbers(shape)),
    "sigmoid": torch.sigmoid,
    "slice_by_index": _slice,
    "squeeze": lambda x, axes: x.squeeze(_numbers(axes)),
    "stack": lambda values, axis: torch.stack(values, int(axis)),
    "sub": _beside(torch.sub),
    "transpose": lambda x, perm: x.permute(_numbers(perm)),
}


def _expanded(shape: Any, axes: list[int]) -> list[int]:
    rank = len(shape) + len(axes)
    new, sizes = {axis % rank for axis in axes}, iter(shape)
    return [1 if axis in new else next(sizes) for axis in range(rank)]
