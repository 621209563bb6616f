"""`edgeact train`: from labelled videos to a checkpoint."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeact.cli._options import calibration_options, parse_options, spec_options, take_calibration

if TYPE_CHECKING:
    from edgeact.cli._model import Network
    from edgeact.train import QatConfig, TrainConfig

__all__ = ["command"]


@click.command("train")
@click.option("--data", required=True, help="Labelled videos; `motion` is the synthetic set.")
@click.option("--model", help="A name of `edgeact models`, or package.module:factory.")
@click.option("--out", required=True, metavar="FILE", help="The checkpoint to write, as model.safetensors.")
@click.option("--checkpoint", metavar="FILE", help="Start from these weights (fine-tuning).")
@click.option("--qat", metavar="FILE", help="Train the int8 network of this checkpoint, with its rounding in the loop.")
@click.option(
    "--scheme",
    help="Of --qat: affine (targets with a free zero point: all of today), portable (symmetric, for TensorRT too), or "
    "the target that it is for.  [default: affine]",
)
@click.option("--distill", type=float, help="Of --qat: share of the loss on the float logits.  [default: 1]")
@calibration_options
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Option of the model, as width=0.5.")
@click.option("--resume", is_flag=True, help="Go on with an unfinished run of the same settings.")
@click.option("--epochs", type=int, help="[default: 15; 6 with --qat]")
@click.option("--batch-size", type=int, default=16, show_default=True, help="Clips per step over all processes.")
@click.option("--lr", type=float, help="Peak learning rate.  [default: 2e-3; 1e-5 with --qat]")
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
def command(data: str, model: str | None, out: str, resume: bool, no_cache: bool, quiet: bool, **given: Any) -> None:
    """Train a network; under torchrun, data-parallel on all its processes.

    With --qat, its int8 network is trained to follow it, and exports in int8 without calibration.

    Writes the checkpoint of the best validation accuracy to OUT, one line per epoch to OUT.metrics.jsonl, and what
    --resume needs to OUT.state.
    """
    from edgeact.cli._model import require_torch

    require_torch()
    from edgeact.cli._model import find_network
    from edgeact.data import cache_dir, open_dataset
    from edgeact.errors import InputError
    from edgeact.evaluate import MOTION
    from edgeact.motion import MOTION_SPEC, motion_set
    from edgeact.train import train

    size = given.pop("train_per_class")
    options = parse_options(given.pop("options"))
    checkpoint, qat = given.pop("checkpoint"), _qat(given)
    followed = given.pop("qat")
    config = _config(given, qat)
    if followed is None and model is None:
        raise InputError("give --model NAME (see `edgeact models`), or --qat CHECKPOINT")
    if followed is not None and Path(out).resolve() == Path(followed).resolve():
        raise InputError(f"--out {out} is the checkpoint of --qat, which training follows: give another file")
    if followed is not None and checkpoint is not None:
        raise InputError("--qat names the checkpoint to start from: leave --checkpoint out")
    if size is not None and data != MOTION:
        raise InputError("--train-per-class sizes the synthetic set: it goes with --data motion")
    if Path(out).is_dir():
        raise InputError(f"--out {out} is a folder: give the file to write, as {Path(out) / 'model.safetensors'}")
    network = find_network(
        name=model,
        checkpoint=followed or checkpoint,
        options=options,
        num_classes=None,
        data=data,
        given=given,
        base=MOTION_SPEC if data == MOTION else None,  # its videos are 64 pixels small
        seed=config.seed,
    )
    if followed is not None:
        _check_followed(network, followed)
    root = motion_set(train_per_class=size or 240, progress=not quiet) if data == MOTION else Path(data)
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
    when = f"at epoch {best['epoch']:.0f}" if best["epoch"] >= 0 else "as calibrated: no epoch came closer; lower --lr"
    click.echo(f"{out}: validation top-1 {best['val_top1']:.4f} {when}")


def _qat(given: dict[str, Any]) -> "QatConfig | None":
    """The options of --qat, taken out of `given`."""
    from edgeact.errors import InputError, UnknownNameError
    from edgeact.quantize.scheme import AFFINE, PORTABLE
    from edgeact.targets import get_target, list_targets
    from edgeact.train import QatConfig

    asked = {name: given.pop(name) for name in ("scheme", "distill", "calibration_clips", "observer")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if given["qat"] is None:
        if asked:
            raise InputError(f"--{next(iter(asked)).replace('_', '-')} goes with --qat CHECKPOINT")
        return None
    if "scheme" in asked:
        schemes = {name: scheme for name in list_targets() if (scheme := get_target(name).scheme) is not None}
        schemes |= {"affine": AFFINE, "portable": PORTABLE}
        if asked["scheme"] not in schemes:
            raise UnknownNameError("scheme", asked["scheme"], schemes)
        asked["scheme"] = schemes[asked["scheme"]]
    return QatConfig(calibration=take_calibration(asked), **asked)


def _config(given: dict[str, Any], qat: "QatConfig | None") -> "TrainConfig":
    """Everything else that says how to train, taken out of `given`."""
    from edgeact.augment import Augmentation
    from edgeact.train import TrainConfig

    names = ("epochs", "batch_size", "lr", "optimizer", "weight_decay", "warmup_epochs", "label_smoothing")
    settings = {name: given.pop(name) for name in (*names, "seed", "workers", "threads", "device")}
    defaults = {"epochs": 15, "lr": 2e-3} if qat is None else {"epochs": 6, "lr": 1e-5}
    settings |= {name: value for name, value in defaults.items() if settings[name] is None}
    augmentation = Augmentation(min_scale=given.pop("min_scale"), flip=given.pop("flip"))
    return TrainConfig(augmentation=augmentation, qat=qat, **settings)


def _check_followed(network: "Network", file: str) -> None:
    from edgeact.errors import InputError

    if network.quantized is not None:
        raise InputError(f"--qat {file}: it was trained for int8 already; export it, or give the float checkpoint")
    if network.notes:
        raise InputError(f"--qat {file}: {network.notes[0]}; the int8 network takes the clips that the float one took")


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
            follows = f"  SQNR {row['val_sqnr_db']:.1f} dB" if "val_sqnr_db" in row else ""
            if "val_top1_untrained" in row:
                start = f"  SQNR {row['val_sqnr_db_untrained']:.1f} dB" if follows else ""
                bar.console.print(f"as calibrated: top-1 {row['val_top1_untrained']:.4f}{start}", highlight=False)
            bar.console.print(
                f"epoch {row['epoch']:3.0f}/{epochs}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
                f"top-1 {row['val_top1']:.4f}{follows}  {row['seconds']:.0f} s",
                highlight=False,
            )
            bar.update(task, description=f"epoch {row['epoch'] + 1:.0f}")

        def on_step(step: int, steps: int) -> None:
            bar.update(task, completed=step, total=steps)

        yield on_epoch, on_step
