import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeact.augment import Augmentation, augment, training_batches
from edgeact.checkpoint import load_checkpoint
from edgeact.clip import ClipSpec
from edgeact.data import VideoDataset, open_dataset
from edgeact.errors import CheckpointError, InputError
from edgeact.models import create_model, options_for_spec
from edgeact.train import TrainConfig, train

OPTIONS = {"width": 0.125, "dropout": 0.0}


def run(videos: Path, spec: ClipSpec, out: Path, config: TrainConfig, **more: object) -> dict[str, float]:
    torch.manual_seed(0)
    return train(
        create_model("ir_csn_26", num_classes=12, **OPTIONS),
        name="ir_csn_26",
        options=OPTIONS,
        spec=spec,
        train_set=open_dataset(videos, split="train"),
        val_set=open_dataset(videos, split="val"),
        out=out,
        config=config,
        cache=None,
        **more,  # type: ignore[arg-type]
    )


CONFIG = TrainConfig(epochs=2, batch_size=8, threads=1)


def test_training_learns_and_writes_what_it_says(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    out = tmp_path / "a" / "model.safetensors"
    config = TrainConfig(epochs=4, batch_size=8, threads=1, label_smoothing=0, optimizer="sgd", lr=0.02)
    best = run(videos, tiny_spec, out, config)
    rows = [json.loads(line) for line in (tmp_path / "a" / "model.safetensors.metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert best in rows
    assert best["val_top1"] == max(row["val_top1"] for row in rows)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    checkpoint = load_checkpoint(out)
    assert checkpoint.spec == tiny_spec
    assert checkpoint.labels == open_dataset(videos, split="test").labels
    assert checkpoint.training["best"] == best
    assert (checkpoint.training["train_clips"], checkpoint.training["val_clips"]) == (24, 12)
    assert not out.with_name("model.safetensors.state").exists()


@pytest.mark.parametrize("name", ["mict_resnet_18", "resnet3d_18", "c3d"])
def test_every_family_trains(name: str, videos: Path, tmp_path: Path) -> None:
    spec = ClipSpec(frames=16, frame_stride=1, short_side=32, crop_height=32, crop_width=32)
    options = {"width": 0.125, **options_for_spec(name, spec)}
    best = train(
        create_model(name, num_classes=12, **options),
        name=name,
        options=options,
        spec=spec,
        train_set=open_dataset(videos, split="train"),
        val_set=open_dataset(videos, split="val"),
        out=tmp_path / "model.safetensors",
        config=TrainConfig(epochs=1, batch_size=12, threads=1),
        cache=None,
    )
    assert np.isfinite(list(best.values())).all()


def test_a_killed_run_resumes_to_the_same_end(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    whole = run(videos, tiny_spec, tmp_path / "whole.safetensors", CONFIG)

    def killed(row: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "killed.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(videos, tiny_spec, out, CONFIG, on_epoch=killed)
    with pytest.raises(InputError, match="holds an unfinished run: add --resume"):
        run(videos, tiny_spec, out, CONFIG)
    other = TrainConfig(epochs=2, batch_size=8, threads=1, lr=0.1)
    with pytest.raises(InputError, match="is a run with other data or settings"):
        run(videos, tiny_spec, out, other, resume=True)
    state = out.with_name(out.name + ".state")
    whole_state = state.read_bytes()
    for damaged in (whole_state[: len(whole_state) // 2], b"no state", b""):
        state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"--resume: .*state is damaged; delete it to start anew"):
            run(videos, tiny_spec, out, CONFIG, resume=True)
    state.write_bytes(whole_state)
    resumed = run(videos, tiny_spec, out, CONFIG, resume=True)
    assert resumed | {"seconds": 0} == whole | {"seconds": 0}
    a, b = load_checkpoint(out), load_checkpoint(tmp_path / "whole.safetensors")
    assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)
    with pytest.raises(InputError, match="--resume: there is no unfinished run at"):
        run(videos, tiny_spec, out, CONFIG, resume=True)


SCRIPT = """
import json, sys, torch
from pathlib import Path
from edgeact.clip import ClipSpec
from edgeact.data import open_dataset
from edgeact.models import create_model
from edgeact.quantize.options import Calibration
from edgeact.train import QatConfig, TrainConfig, train
qat = QatConfig(calibration=Calibration(clips=12), distill=0.5) if sys.argv[4] == "int8" else None
videos, out, spec = Path(sys.argv[1]), Path(sys.argv[2]), ClipSpec.from_dict(json.loads(sys.argv[3]))
torch.manual_seed(0)
options = {"width": 0.125, "dropout": 0.0}
train(create_model("ir_csn_26", num_classes=12, **options), name="ir_csn_26", options=options, spec=spec,
      train_set=open_dataset(videos, split="train"), val_set=open_dataset(videos, split="val"), out=out,
      config=TrainConfig(epochs=2, batch_size=8, threads=1, optimizer="sgd", lr=1e-4, qat=qat), cache=None)
"""


@pytest.mark.parametrize("kind", ["float", pytest.param("int8", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(kind: str, videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    """Same loss curve with two gloo processes as with one and the same global batch, BatchNorm included.

    The learning rate is low because float32 rounding grows from step to step; the next test is exact.
    """
    curves = {}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for processes in (1, 2):
        out = tmp_path / f"{processes}.safetensors"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes == 2 else []
        command = [sys.executable, *launcher, str(script), str(videos), str(out), json.dumps(tiny_spec.to_dict()), kind]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        lines = out.with_name(out.name + ".metrics.jsonl").read_text().splitlines()
        curves[processes] = [json.loads(line) for line in lines]
    for key in ("train_loss", "val_loss", "val_top1"):
        one, two = ([row[key] for row in curves[processes]] for processes in (1, 2))
        np.testing.assert_allclose(one, two, rtol=2e-4 if kind == "float" else 2e-3)  # a value may round the other way


EXACT = """
import sys, torch, torch.distributed as dist
from torch import nn
from edgeact._distributed import process_group, synchronize_batch_norm_
from edgeact.models import create_model
torch.manual_seed(0)
model = create_model("ir_csn_26", num_classes=12, width=0.125, dropout=0.0).double()
clips, labels, cpu = torch.randn(8, 3, 4, 32, 32).double(), torch.arange(8), torch.device("cpu")
with process_group(cpu) as (rank, world):
    parallel = nn.parallel.DistributedDataParallel(synchronize_batch_norm_(model, cpu)) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        loss = nn.functional.cross_entropy(parallel(clips[rank::world]), labels[rank::world])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if world > 1:
            dist.all_reduce(mean)
        if rank == 0:
            print(repr(mean.item() / world))
    model.eval()
    if rank == 0:
        print(repr(model(clips).sum().item()))
"""


def test_batch_norm_over_processes_is_exact(tmp_path: Path) -> None:
    """In float64 three steps and the running statistics agree to rounding: gradients pass through the sums."""
    (tmp_path / "script.py").write_text(EXACT)
    outputs = []
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes == 2 else []
        command = [sys.executable, *launcher, str(tmp_path / "script.py")]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        outputs.append([float(line) for line in done.stdout.split()])
    assert len(outputs[0]) == 4
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-9)


def test_batches_are_the_same_clips_on_any_number_of_processes(videos: Path, tiny_spec: ClipSpec) -> None:
    data = open_dataset(videos, split="train")

    def batches(rank: int, world: int) -> list[np.ndarray]:
        options = {"batch_size": 8, "epoch": 3, "seed": 1, "cache": None}
        pairs = training_batches(data, tiny_spec, Augmentation(), rank=rank, world=world, **options)  # type: ignore[arg-type]
        return [clips for clips, _ in pairs]

    one, halves = batches(0, 1), (batches(0, 2), batches(1, 2))
    assert len(one) == 3
    for whole, first, second in zip(one, *halves, strict=True):
        np.testing.assert_array_equal(whole[0::2], first)
        np.testing.assert_array_equal(whole[1::2], second)


def test_augmentation_flips_only_when_asked(tiny_spec: ClipSpec) -> None:
    ramp = np.broadcast_to(np.arange(36, dtype=np.uint8)[None, None, :, None], (9, 36, 36, 3))

    def slopes(flip: bool) -> set[bool]:
        options = Augmentation(min_scale=1, flip=flip)
        clips = [augment(ramp, tiny_spec, options, np.random.default_rng(i)) for i in range(20)]
        assert all(clip.shape == tiny_spec.clip_shape for clip in clips)
        return {bool(clip[0, 0, 0, 0] < clip[0, 0, -1, 0]) for clip in clips}

    assert slopes(flip=False) == {True}
    assert slopes(flip=True) == {True, False}


def test_augmentation_moves_in_time_and_loops(tiny_spec: ClipSpec) -> None:
    clock = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None], (9, 36, 36, 3))
    starts = {int(augment(clock, tiny_spec, Augmentation(), np.random.default_rng(i))[0, 0, 0, 0]) for i in range(60)}
    assert starts == set(range(6))
    looped = augment(clock[:3], tiny_spec, Augmentation(), np.random.default_rng(0))
    assert looped[:, 0, 0, 0].tolist() == [0, 1, 2, 0]


def test_bad_settings(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="epochs is 0: it must be at least 1"):
        TrainConfig(epochs=0)
    with pytest.raises(InputError, match="lr is nan: it must be a finite number"):
        TrainConfig(lr=float("nan"))
    with pytest.raises(InputError, match="label_smoothing is 1"):
        TrainConfig(label_smoothing=1)
    with pytest.raises(InputError, match="min_scale is 2: it is a share"):
        Augmentation(min_scale=2)
    with pytest.raises(InputError, match="batch_size 99 is more than the 24 training clips"):
        run(videos, tiny_spec, tmp_path / "x", TrainConfig(batch_size=99))
    with pytest.raises(InputError, match="device 'cuda:9' cannot be used"):
        run(videos, tiny_spec, tmp_path / "x", TrainConfig(device="cuda:9"))
    with pytest.raises(InputError, match=r"the loss is .* lower --lr"):
        run(videos, tiny_spec, tmp_path / "x", TrainConfig(lr=1e30, epochs=3, batch_size=8, warmup_epochs=0))


def test_a_run_that_cannot_start_leaves_no_folder(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch_size 99"):
        run(videos, tiny_spec, tmp_path / "a" / "b" / "x", TrainConfig(batch_size=99))
    assert not list(tmp_path.iterdir())


def test_a_batch_that_does_not_divide(videos: Path) -> None:
    from edgeact.train import _check_batch

    data: VideoDataset = open_dataset(videos, split="train")
    with pytest.raises(InputError, match="batch_size 9 does not divide by the 2 processes"):
        _check_batch(TrainConfig(batch_size=9), data, 2)
