"""Training from scratch or from a checkpoint: one process, or data-parallel under torchrun.

    videos ─► grid frames (cached) ─► augmented clips ─► network ─► best checkpoint by validation accuracy
                                                            │
                                        OUT.metrics.jsonl, OUT.state (to resume after a kill)

Shapes: B clips, K classes; `clip_BCTHW -> logits_BK`.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeact._qat import QuantizationAware
from edgeact._training_run import RunFiles, as_untrained, best_epoch, folder_of, identify
from edgeact.augment import Augmentation
from edgeact.checkpoint import Checkpoint, save_checkpoint
from edgeact.clip import ClipSpec
from edgeact.data import VideoDataset, iter_clips
from edgeact.errors import InputError
from edgeact.evaluate import EvaluationSet, balanced
from edgeact.quantize.options import Calibration
from edgeact.quantize.scheme import AFFINE, Scheme

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["QatConfig", "TrainConfig", "train"]


@dataclass(frozen=True, kw_only=True)
class QatConfig:
    """How to train an int8 network after a float one.

    Attributes:
        scheme: The int8 rule; `AFFINE` serves targets with a free zero point, `PORTABLE` every one.
        distill: Share of the loss that follows the float network's logits: the noise in them over their power, which is
            what SQNR measures. The rest is the cross-entropy with the labels.
        calibration: What gives activations their ranges.
        freeze_after: Share of the epochs after which the ranges stay as they are.
    """

    scheme: Scheme = AFFINE
    distill: float = 1.0
    calibration: Calibration = field(default_factory=Calibration)
    freeze_after: float = 0.5

    def __post_init__(self) -> None:
        for name in ("distill", "freeze_after"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is a share, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    Attributes:
        batch_size: Clips of one step over all processes together.
        lr: Peak learning rate: reached after `warmup_epochs`, then a cosine down to zero (Loshchilov 2017).
        optimizer: AdamW, or SGD with momentum 0.9 (Nesterov).
        threads: CPU threads of this process; 0 leaves torch's default.
        qat: Train the int8 network after the float one that is given; None trains that itself.
    """

    epochs: int = 15
    batch_size: int = 16
    lr: float = 2e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    workers: int = 2
    threads: int = 0
    device: str = "cpu"
    qat: QatConfig | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("lr", "weight_decay", "warmup_epochs"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name} is {getattr(self, name)}: it must be a finite number that is not negative")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing is {self.label_smoothing}: it must be from 0 up to, not including, 1")


def train(
    model: "nn.Module",
    *,
    name: str,
    options: Mapping[str, Any],
    spec: ClipSpec,
    train_set: VideoDataset,
    val_set: VideoDataset,
    out: Path,
    config: TrainConfig,
    cache: Path | None,
    resume: bool = False,
    on_epoch: Callable[[Mapping[str, float]], None] = lambda row: None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> dict[str, float]:
    """Train `model` and write the checkpoint of the best validation accuracy to `out`.

    Args:
        model: `clip_BCTHW -> logits_BK`; trained in place, or left as it is where `config.qat` trains its int8 network.
        name: The model's registered name or factory, for the checkpoint; `options` likewise.
        train_set: Clips to learn from.
        val_set: Clips that choose the epoch; accuracy is reported on others (the `test` split).
        resume: Go on from `OUT.state`, which holds the end of the last whole epoch; the result is that of a run which
            was never stopped.
        on_epoch: Called with each finished epoch's metrics.
        on_step: Called after each step with (steps done in this epoch, steps of an epoch).

    Returns:
        The metrics of the best epoch: epoch, lr, train_loss, val_loss, val_top1, seconds; with `config.qat` also
        val_sqnr_db against the float network, and epoch -1 where no epoch came closer to it than calibration alone.

    Raises:
        InputError: The network does not map a clip to logits, the batch does not fit the data or the processes, the
            device is absent, `out` holds another run, or the loss is not finite.
    """
    import torch

    from edgeact._capture import check_network
    from edgeact._distributed import process_group, synchronize_batch_norm_
    from edgeact._trainer import Trainer

    device = _device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if (outputs := check_network(model, spec)) != len(train_set.labels):
        raise InputError(f"the model has {outputs} outputs, the data {len(train_set.labels)} classes")
    with process_group(device) as (rank, world), folder_of(out):
        _check_batch(config, train_set, world)
        subject: _Float | QuantizationAware
        if config.qat is None:
            subject = _Float(synchronize_batch_norm_(model, device) if world > 1 else model)
        else:
            count = max(config.qat.calibration.clips, len(train_set.labels))
            clips = EvaluationSet(balanced(train_set, count), spec, cache=cache)
            subject = QuantizationAware(model, spec, config.qat, clips, device)
        steps = len(train_set.samples) // config.batch_size
        module = _channels_last_(subject.module.to(device))
        teacher = subject.teacher if config.qat is not None and config.qat.distill else None
        trainer = Trainer(module, config, device, rank, world, steps, teacher)
        identity = identify(name, options, spec, train_set, val_set, config, subject.teacher)
        files = RunFiles(out)
        history = trainer.restore(files.state, identity) if resume else files.start(rank)
        val = [(clip, sample.label) for sample, clip in iter_clips(val_set, spec, cache=cache, workers=config.workers)]

        def keep(best: dict[str, float]) -> None:
            facts = {"config": dataclasses.asdict(config), "world_size": world, "best": best, "curves": history}
            facts |= {"train_clips": len(train_set.samples), "val_clips": len(val), "torch": torch.__version__}
            named: dict[str, Any] = {"model": name, "options": options, "spec": spec, "labels": train_set.labels}
            save_checkpoint(out, Checkpoint(**named, training=facts, **subject.parts()))

        for epoch in range(len(history), config.epochs):
            subject.start_epoch(epoch / config.epochs)
            start: dict[str, float] = {}
            if config.qat is not None and epoch == 0:  # what calibration alone gives may stay the best
                start = trainer.validate(val, spec)
                if rank == 0:
                    trainer.save(files.state, identity, history)  # a kill from here on can be resumed
                    keep(as_untrained(start))
            row = trainer.epoch(epoch, train_set, spec, cache, on_step) | trainer.validate(val, spec)
            history.append(row | {f"{key}_untrained": value for key, value in start.items()})
            if rank > 0:
                continue
            if best_epoch(history) is history[-1]:
                keep(history[-1])
            trainer.save(files.state, identity, history)
            files.write_metrics(history)
            on_epoch(history[-1])
        if rank == 0:
            files.state.unlink(missing_ok=True)
        return best_epoch(history)


class _Float:
    """The network itself is trained; the interface of `QuantizationAware`."""

    teacher = None

    def __init__(self, model: "nn.Module") -> None:
        self.module = model

    def start_epoch(self, share: float) -> None:
        """Nothing has to be prepared."""

    def parts(self) -> dict[str, Any]:
        return {"state": self.module.state_dict()}


def _channels_last_(model: "nn.Module") -> "nn.Module":
    """1.7 times faster to train on a CPU (ir_csn_26, 8x64^2), and what cuDNN's tensor cores take."""
    import torch

    for parameter in model.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model


def _device(name: str) -> "torch.device":
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as exc:
        raise InputError(f"device {name!r} cannot be used: {str(exc).splitlines()[0]}") from exc
    if name == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def _check_batch(config: TrainConfig, data: VideoDataset, world: int) -> None:
    if config.batch_size % world:
        raise InputError(f"batch_size {config.batch_size} does not divide by the {world} processes")
    if config.batch_size > len(data.samples):
        raise InputError(f"batch_size {config.batch_size} is more than the {len(data.samples)} training clips")
