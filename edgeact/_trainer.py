"""The steps of training on one process: an epoch, a validation pass, and the state between epochs.

`edgeact.train` decides what runs and what is kept. Shapes: B clips, K classes.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from edgeact.augment import training_batches
from edgeact.clip import ClipSpec, normalize
from edgeact.data import VideoDataset
from edgeact.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from edgeact.train import TrainConfig

__all__ = ["Trainer"]


class Trainer:
    """Model, optimizer and schedule of one process.

    Args:
        model: On `device`, in the memory layout to train in; trained in place.
        config: The settings.
        device: Of this process.
        rank: Of this process, of `world`.
        world: Number of processes.
        steps: Batches of an epoch.
        teacher: Whose logits to follow, by the share `config.qat.distill`; None learns from the labels alone.
    """

    def __init__(
        self,
        model: nn.Module,
        config: "TrainConfig",
        device: torch.device,
        rank: int,
        world: int,
        steps: int,
        teacher: nn.Module | None = None,
    ) -> None:
        self.model, self.config, self.device, self.teacher = model, config, device, teacher
        self.rank, self.world, self.steps = rank, world, steps
        torch.manual_seed(config.seed)
        # DDP averages the gradients; its forward is the model's own.
        # 1x1x1 weights have strides that are channels-last and contiguous at once, of which DDP warns for nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        self.parallel = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
        decay = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]  # biases and BatchNorm are not decayed
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(groups, lr=config.lr)
            if config.optimizer == "adamw"
            else torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
        )
        half = torch.float16
        if device.type == "cuda" and torch.cuda.is_bf16_supported():
            half = torch.bfloat16
        self.autocast = torch.autocast(device.type, dtype=half, enabled=device.type == "cuda")
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and half == torch.float16)

    def _lr(self, step: int) -> float:
        warmup, total = self.config.warmup_epochs * self.steps, self.config.epochs * self.steps
        if step < warmup:
            return self.config.lr * (step + 1) / warmup
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))

    def _to_device(self, clips: NDArray[np.uint8], spec: ClipSpec) -> torch.Tensor:
        clips_BCTHW = torch.from_numpy(normalize(clips, spec)).to(self.device, non_blocking=True)
        return clips_BCTHW.contiguous(memory_format=torch.channels_last_3d)

    def epoch(
        self, epoch: int, data: VideoDataset, spec: ClipSpec, cache: Path | None, on_step: Callable[[int, int], None]
    ) -> dict[str, float]:
        """Train one epoch; returns epoch, lr, train_loss (mean over all processes) and seconds."""
        torch.manual_seed(self.config.seed * 1000003 + epoch * self.world + self.rank)  # dropout, the same when resumed
        config, started, total, lr = self.config, time.monotonic(), 0.0, 0.0
        self.model.train()
        order: dict[str, Any] = {"batch_size": config.batch_size, "epoch": epoch, "seed": config.seed}
        order |= {"rank": self.rank, "world": self.world, "workers": config.workers, "cache": cache}
        batches = training_batches(data, spec, config.augmentation, **order)
        for step, (clips, labels) in enumerate(batches):
            lr = self._lr(epoch * self.steps + step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            target = torch.from_numpy(labels).to(self.device)
            loss = self._loss(self._to_device(clips, spec), target)
            if not torch.isfinite(loss):
                raise InputError(f"the loss is {loss.item()} at epoch {epoch}, step {step}: lower --lr")
            self.optimizer.zero_grad()
            torch.autograd.backward(self.scaler.scale(loss))
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total += self._mean(loss.item())
            on_step(step + 1, self.steps)
        return {
            "epoch": float(epoch),
            "lr": lr,
            "train_loss": total / self.steps,
            "seconds": round(time.monotonic() - started, 3),
        }

    def _loss(self, clips_BCTHW: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        """Cross-entropy with the labels, and the noise in the logits against the teacher's."""
        with self.autocast:
            logits_BK = self.parallel(clips_BCTHW).float()
        smoothing, distill = self.config.label_smoothing, self.config.qat.distill if self.config.qat else 0.0
        loss = torch.nn.functional.cross_entropy(logits_BK, target_B, label_smoothing=smoothing)
        if not distill:
            return loss
        noise_B, power_B = self._noise(logits_BK, clips_BCTHW)
        return (1 - distill) * loss + distill * noise_B.sum() / power_B.sum()  # one clip's power may be next to none

    def _noise(self, logits_BK: torch.Tensor, clips_BCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squares of the differences from the teacher's logits, and of these, summed for every clip."""
        assert self.teacher is not None
        with self.autocast, torch.no_grad():
            follow_BK = self.teacher(clips_BCTHW).float()
        return (logits_BK - follow_BK).square().sum(1), follow_BK.square().sum(1)

    def validate(self, val: Sequence[tuple[NDArray[np.uint8], int]], spec: ClipSpec) -> dict[str, float]:
        """Mean loss and top-1 over the validation clips, shared out over the processes; SQNR if there is a teacher."""
        self.model.eval()
        loss, right, noise, power = 0.0, 0.0, 0.0, 0.0
        mine = val[self.rank :: self.world]
        with torch.inference_mode():
            for i in range(0, len(mine), 16):
                clips, labels = zip(*mine[i : i + 16], strict=True)
                clips_BCTHW = self._to_device(np.stack(clips), spec)
                logits_BK = self.model(clips_BCTHW).float()
                target = torch.tensor(labels, device=self.device)
                loss += float(torch.nn.functional.cross_entropy(logits_BK, target, reduction="sum"))
                right += float((logits_BK.argmax(1) == target).sum())
                if self.teacher is not None:
                    noise_B, power_B = self._noise(logits_BK, clips_BCTHW)
                    noise, power = noise + float(noise_B.sum()), power + float(power_B.sum())
        scale = self.world / len(val)
        row = {"val_loss": self._mean(loss) * scale, "val_top1": self._mean(right) * scale}
        if self.teacher is not None:
            row["val_sqnr_db"] = 10 * math.log10(self._mean(power) / max(self._mean(noise), 1e-30))
        return row

    def _mean(self, value: float) -> float:
        """Mean over the processes."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor) / self.world

    def save(self, path: Path, identity: str, history: list[dict[str, float]]) -> None:
        """Everything the next epoch needs, written beside and renamed."""
        partial = path.with_name(f".{path.name}.partial")
        state: dict[str, Any] = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"scaler": self.scaler.state_dict(), "identity": identity, "history": history}
        try:
            torch.save(state, partial)
            partial.replace(path)
        except RuntimeError as exc:  # torch's zip writer reports a full disk so
            raise InputError(f"{path} cannot be written ({str(exc).splitlines()[0]}): is the disk full?") from exc
        finally:
            partial.unlink(missing_ok=True)

    def restore(self, path: Path, identity: str) -> list[dict[str, float]]:
        """Load what `save` wrote; returns the rows of the epochs that are done."""
        if not path.is_file():
            raise InputError(f"--resume: there is no unfinished run at {path}")
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as exc:  # UnpicklingError, RuntimeError, EOFError … by the kind of damage
            raise CheckpointError(f"--resume: {path} is damaged; delete it to start anew") from exc
        if state["identity"] != identity:
            raise InputError(f"--resume: {path} is a run with other data or settings; delete it to start anew")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        history: list[dict[str, float]] = state["history"]
        return history
