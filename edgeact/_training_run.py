"""A training run apart from its steps: its files, what makes it the same run, and which of its epochs is the best."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeact._qat import fingerprint
from edgeact.clip import ClipSpec
from edgeact.data import VideoDataset
from edgeact.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from edgeact.train import TrainConfig

__all__ = ["RunFiles", "as_untrained", "best_epoch", "folder_of", "identify"]


@contextlib.contextmanager
def folder_of(out: Path) -> Iterator[None]:
    """Makes the folder of `out`; a run that fails before it wrote anything leaves no empty folder."""
    made = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # holds something: stays
            for folder in made:
                folder.rmdir()
        raise


class RunFiles:
    """What stands beside the checkpoint `out`."""

    def __init__(self, out: Path) -> None:
        self.state = out.with_name(out.name + ".state")
        self.metrics = out.with_name(out.name + ".metrics.jsonl")

    def start(self, rank: int) -> list[dict[str, float]]:
        """The empty history of a new run."""
        if self.state.exists() and rank == 0:
            raise InputError(f"{self.state} holds an unfinished run: add --resume to go on, or delete it to start anew")
        return []

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """One line of JSON per epoch."""
        partial = self.metrics.with_name(f".{self.metrics.name}.partial")
        try:
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
            partial.replace(self.metrics)
        finally:
            partial.unlink(missing_ok=True)


def as_untrained(row: Mapping[str, float]) -> dict[str, float]:
    """What stood before the first epoch, as an epoch."""
    return {key.removesuffix("_untrained"): value for key, value in row.items()} | {"epoch": -1.0}


def best_epoch(history: list[dict[str, float]]) -> dict[str, float]:
    """The row of the best epoch; of a network that was never better than untrained, what stood before the first."""
    start = {key: value for key, value in history[0].items() if key.endswith("_untrained")}
    rows = [*([as_untrained(start)] if start else []), *history]
    return max(rows, key=_score)


def _score(row: Mapping[str, float]) -> tuple[float, ...]:
    """The better epoch has the greater one: that which follows the teacher closest, where there is one."""
    return row.get("val_sqnr_db", 0.0), row["val_top1"], -row["val_loss"]


def identify(
    name: str,
    options: Mapping[str, Any],
    spec: ClipSpec,
    train_set: VideoDataset,
    val_set: VideoDataset,
    config: "TrainConfig",
    teacher: "nn.Module | None",
) -> str:
    """What must be equal for a run to be the same run: resuming another one would give a model nobody trained."""
    same = dataclasses.asdict(config) | {"workers": None, "threads": None}
    ids = [[(sample.id, sample.label) for sample in data.samples] for data in (train_set, val_set)]
    follows = fingerprint(teacher) if teacher is not None else None
    return json.dumps([name, dict(options), spec.to_dict(), same, train_set.labels, ids, follows], sort_keys=True)
