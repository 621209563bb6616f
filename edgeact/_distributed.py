"""Data-parallel training under torchrun: rank and world size, and batch statistics over all processes.

torch's own SyncBatchNorm runs on GPUs only; `synchronize_batch_norm_` is the same mathematics for the CPU (gloo):

    mean = sum_r sum(x_r) / sum_r n_r        var = sum_r sum(x_r^2) / sum_r n_r - mean^2

so that R processes with B / R clips each train the network that one process with B clips trains.
"""

import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["process_group", "synchronize_batch_norm_"]


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[int, int]]:
    """`(rank, world size)`; joins torchrun's process group where its variables are set, and leaves it at the end."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield 0, 1
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def synchronize_batch_norm_(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm of `model` use the statistics of all processes' clips while training."""
    if device.type == "cuda":
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return synchronized
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = types.MethodType(_global_batch_norm, module)  # type: ignore[method-assign]
    return model


class _SumOverProcesses(torch.autograd.Function):
    """`dist.all_reduce` that autograd knows: every process's loss depends on every process's sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total


def _global_batch_norm(module: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    if not module.training:
        return nn.functional.batch_norm(
            x, module.running_mean, module.running_var, module.weight, module.bias, False, 0.0, module.eps
        )
    dims = [0, *range(2, x.ndim)]
    count = torch.full((1,), x.numel() / x.shape[1], dtype=x.dtype)
    local = torch.cat([x.sum(dims), (x * x).sum(dims), count])
    sums: Tensor = _SumOverProcesses.apply(local)  # type: ignore[no-untyped-call]
    channels, total = x.shape[1], sums[-1]
    mean = sums[:channels] / total
    var = sums[channels:-1] / total - mean * mean
    if module.track_running_stats and module.running_mean is not None and module.running_var is not None:
        assert module.num_batches_tracked is not None
        module.num_batches_tracked += 1
        rate = module.momentum if module.momentum is not None else 1 / float(module.num_batches_tracked)
        with torch.no_grad():
            module.running_mean.lerp_(mean, rate)
            module.running_var.lerp_(var * total / (total - 1), rate)
    scale = (var + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight
    shift = -mean * scale if not module.affine else module.bias - mean * scale
    shape = [1, channels] + [1] * (x.ndim - 2)
    return x * scale.view(shape) + shift.view(shape)
