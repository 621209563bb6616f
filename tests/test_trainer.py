"""What a training process keeps between epochs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from edgeact._trainer import Trainer
from edgeact.errors import InputError
from edgeact.train import TrainConfig


def test_a_full_disk_leaves_the_state_as_it_was(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    trainer = Trainer(torch.nn.Linear(64, 64), TrainConfig(), torch.device("cpu"), rank=0, world=1, steps=1)
    state = tmp_path / "m.state"
    trainer.save(state, "a", [{"epoch": 0.0}])
    with full_disk(), pytest.raises(InputError, match=r"m\.state cannot be written \(.*\): is the disk full\?"):
        trainer.save(state, "a", [{"epoch": 0.0}, {"epoch": 1.0}])
    assert list(tmp_path.iterdir()) == [state]
    assert trainer.restore(state, "a") == [{"epoch": 0.0}]
