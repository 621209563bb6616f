"""The packaged network has learnt motion and nothing else."""

import numpy as np
import pytest
import torch

from edgeact.checkpoint import load_checkpoint, load_weights_, packaged_checkpoint
from edgeact.clip import normalize
from edgeact.evaluate import EvaluationSet
from edgeact.models import build_model
from edgeact.motion import MOTION_CLASSES, REVERSED, motion_set

Clips = list[tuple[str, np.ndarray]]


@pytest.fixture(scope="module")
def clips() -> Clips:
    checkpoint = load_checkpoint(packaged_checkpoint())
    root = motion_set(train_per_class=0, test_per_class=4)
    evaluation = EvaluationSet.open(root, checkpoint.spec, labels=checkpoint.labels)
    return [(checkpoint.labels[sample.label], clip) for sample, clip in evaluation]


def predict(clips: list[np.ndarray]) -> list[str]:
    checkpoint = load_checkpoint(packaged_checkpoint())
    model = build_model(checkpoint.model, num_classes=len(checkpoint.labels), options=checkpoint.options).eval()
    load_weights_(model, checkpoint.state, source="packaged")
    with torch.inference_mode():
        logits = model(torch.from_numpy(normalize(np.concatenate(clips), checkpoint.spec)))
    return [checkpoint.labels[i] for i in logits.argmax(1).tolist()]


def test_it_knows_its_classes_and_their_reverse(clips: Clips) -> None:
    truth = [label for label, _ in clips]
    assert sorted(set(truth)) == list(MOTION_CLASSES)
    forwards = predict([clip for _, clip in clips])
    assert np.mean([a == b for a, b in zip(forwards, truth, strict=True)]) >= 0.95
    backwards = predict([np.ascontiguousarray(clip[:, ::-1]) for _, clip in clips])
    assert np.mean([a == REVERSED[b] for a, b in zip(backwards, truth, strict=True)]) >= 0.9


def test_one_frame_tells_it_nothing(clips: Clips) -> None:
    stills = predict([np.repeat(clip[:, 3:4], clip.shape[1], axis=1) for _, clip in clips])
    right = np.mean([a == label for a, (label, _) in zip(stills, clips, strict=True)])
    assert right <= 2 / len(MOTION_CLASSES)  # chance is 1 / 12
