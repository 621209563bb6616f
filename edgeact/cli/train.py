"""`edgeact train`: from labelled videos to a checkpoint."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgeact.cli._options import parse_options, spec_options

__all__ = ["command"]


@click.command("train")
@click.option("--data", required=True, help="Labelled videos; `motion` is the synthetic set.")
@click.option("--model", required=True, help="A name of `edgeact models`, or package.module:factory.")
@click.option("--out", required=True, metavar="FILE", help="The checkpoint to write, as model.safetensors.")
@click.option("--checkpoint", metavar="FILE", help="Start from these weights (fine-tuning).")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Option of the model, as width=0.5.")
@click.option("--resume", is_flag=True, help="Go on with an unfinished run of the same settings.")
@click.option("--epochs", type=int, default=15, show_default=True)
@click.option("--batch-size", type=int, default=16, show_default=True, help="Clips per step over all processes.")
@click.option("--lr", type=float, default=2e-3, show_default=True, help="Peak learning rate.")
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--weight-decay", type=float, default=0.05, show_default=True)
@click.option("--warmup-epochs", type=float, default=1.0, show_default=True)
@click.option("--label-smoothing", type=float, default=0.1, show_default=True)
@click.option("--min-scale", type=float, default=0.8, show_default=True, help="Smallest random crop; 1 keeps all.")
@click.option("--flip", is_flag=True, help="Mirror half of the clips: only where left and right mean the same.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--workers", type=int, default=2, show_default=True, help="Threads that prepare clips.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: torch's choice]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--train-per-class", type=click.IntRange(1), help="Size of the motion set.  [default: 240]")
@click.option("--no-cache", is_flag=True, help="Decode every epoch instead of keeping decoded frames on disk.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@spec_options
def command(data: str, model: str, out: str, resume: bool, no_cache: bool, quiet: bool, **given: Any) -> None:
    """Train a network; under torchrun, data-parallel on all its processes.

    Writes the checkpoint of the best validation accuracy to OUT, one line per epoch to OUT.metrics.jsonl, and what
    --resume needs to OUT.state.
    """
    from edgeact.cli._model import require_torch

    require_torch()
    import torch

    from edgeact.augment import Augmentation
    from edgeact.cli._model import find_network
    from edgeact.data import cache_dir, open_dataset
    from edgeact.errors import InputError
    from edgeact.evaluate import MOTION
    from edgeact.motion import MOTION_SPEC, motion_set
    from edgeact.train import TrainConfig, train

    size = given.pop("train_per_class")
    options = parse_options(given.pop("options"))
    checkpoint = given.pop("checkpoint")
    names = ("epochs", "batch_size", "lr", "optimizer", "weight_decay", "warmup_epochs", "label_smoothing")
    settings = {name: given.pop(name) for name in (*names, "seed", "workers", "threads", "device")}
    augmentation = Augmentation(min_scale=given.pop("min_scale"), flip=given.pop("flip"))
    config = TrainConfig(augmentation=augmentation, **settings)
    torch.manual_seed(config.seed)
    if size is not None and data != MOTION:
        raise InputError("--train-per-class sizes the synthetic set: it goes with --data motion")
    if Path(out).is_dir():
        raise InputError(f"--out {out} is a folder: give the file to write, as {Path(out) / 'model.safetensors'}")
    root = motion_set(train_per_class=size or 240, progress=not quiet) if data == MOTION else Path(data)
    base = MOTION_SPEC if data == MOTION else None  # its videos are 64 pixels small
    network = find_network(
        name=model, checkpoint=checkpoint, options=options, num_classes=None, data=data, given=given, base=base
    )
    with _progress(config.epochs, quiet) as (on_epoch, on_step):
        best = train(
            network.model,
            name=network.name,
            options=network.options,
            spec=network.spec,
            train_set=open_dataset(root, split="train", labels=network.labels),
            val_set=open_dataset(root, split="val", labels=network.labels),
            out=Path(out),
            config=config,
            cache=None if no_cache else cache_dir(),
            resume=resume,
            on_epoch=on_epoch,
            on_step=on_step,
        )
    click.echo(f"{out}: validation top-1 {best['val_top1']:.4f} at epoch {best['epoch']:.0f}")


@contextmanager
def _progress(
    epochs: int, quiet: bool
) -> Iterator[tuple[Callable[[Mapping[str, float]], None], Callable[[int, int], None]]]:
    """What to call after each epoch and step: a line and a bar on stderr, from the first process alone."""
    from rich.console import Console
    from rich.progress import Progress

    first = os.environ.get("RANK", "0") == "0"
    with Progress(console=Console(stderr=True), disable=quiet or not first, transient=True) as bar:
        task = bar.add_task("epoch 0", total=None)

        def on_epoch(row: Mapping[str, float]) -> None:
            bar.console.print(
                f"epoch {row['epoch']:3.0f}/{epochs}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
                f"top-1 {row['val_top1']:.4f}  {row['seconds']:.0f} s",
                highlight=False,
            )
            bar.update(task, description=f"epoch {row['epoch'] + 1:.0f}")

        def on_step(step: int, steps: int) -> None:
            bar.update(task, completed=step, total=steps)

        yield on_epoch, on_step
