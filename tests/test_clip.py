"""ClipSpec and its numpy preprocessing, against torch's own interpolation."""

import dataclasses

import numpy as np
import pytest

from edgeact.clip import (
    ClipSpec,
    crop_center,
    normalize,
    resize,
    resize_and_crop,
    resized_shape,
    scale_and_offset,
    window_indices,
)
from edgeact.errors import InputError

SIZES = [(96, 128), (240, 426), (131, 77), (128, 128), (64, 300), (720, 405), (1, 1)]


def random_frame(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_resize_is_bilinear_within_one_level(size):
    functional = pytest.importorskip("torch.nn.functional")
    torch = pytest.importorskip("torch")
    frame, spec = random_frame(*size), ClipSpec(short_side=128)
    ours = resize(frame, spec)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].double()
    theirs = functional.interpolate(image, size=resized_shape(*size, 128), mode="bilinear", align_corners=False)
    assert np.abs(ours - theirs[0].permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", [(112, 112), (128, 96), (1, 127)])
def test_resize_and_crop_is_the_crop_of_the_resized_frame(size, crop):
    frame, spec = random_frame(*size), ClipSpec(short_side=128, crop_height=crop[0], crop_width=crop[1])
    np.testing.assert_array_equal(resize_and_crop(frame, spec), crop_center(resize(frame, spec), spec))


def test_resize_takes_views_and_keeps_constants():
    frame = random_frame(50, 80)
    turned = np.rot90(frame)
    spec = ClipSpec(short_side=40, crop_height=40, crop_width=40)
    np.testing.assert_array_equal(resize(turned, spec), resize(np.ascontiguousarray(turned), spec))
    assert (resize(np.full((50, 80, 3), 255, np.uint8), spec) == 255).all()


def test_equal_size_copies():
    frame = random_frame(128, 160)
    resized = resize(frame, ClipSpec())
    np.testing.assert_array_equal(resized, frame)
    assert not np.shares_memory(resized, frame)


@pytest.mark.parametrize(
    ("size", "expected"), [((240, 426), (128, 227)), ((426, 240), (227, 128)), ((7, 7), (128, 128))]
)
def test_resized_shape(size, expected):
    assert resized_shape(*size, 128) == expected


def test_normalize():
    spec = ClipSpec(frames=2, short_side=8, crop_height=6, crop_width=7)
    clip = np.random.default_rng(0).integers(0, 256, (1, *spec.clip_shape), dtype=np.uint8)
    expected = ((clip / 255 - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 4, 1, 2, 3)
    result = normalize(clip, spec)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert all(part.dtype == np.float32 and part.shape == (3,) for part in scale_and_offset(spec))


@pytest.mark.parametrize(
    ("num", "frames", "start", "expected"),
    [(5, 3, None, [1, 2, 3]), (5, 8, None, [0, 1, 2, 3, 4, 0, 1, 2]), (5, 3, 4, [4, 0, 1]), (1, 3, None, [0, 0, 0])],
)
def test_window_indices(num, frames, start, expected):
    assert window_indices(num, frames, start).tolist() == expected


def test_round_trip():
    spec = ClipSpec(frames=4, sample_fps=12.5, mean=(0.1, 0.2, 0.3))
    assert ClipSpec.from_dict(spec.to_dict()) == spec
    assert spec.clip_shape == (4, 112, 112, 3)


@pytest.mark.parametrize("fields", [None, [1], {"frames": 3}, ClipSpec().to_dict() | {"extra": 1}])
def test_from_dict_refuses(fields):
    with pytest.raises(InputError, match=r"a ClipSpec has the fields .*'short_side'.*, found"):
        ClipSpec.from_dict(fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "ClipSpec.frames is 0: it must be a whole number from 1 to 65536"),
        ({"frame_stride": 1.5}, "ClipSpec.frame_stride is 1.5"),
        ({"short_side": True}, "ClipSpec.short_side is True"),
        ({"sample_fps": 0.0}, "ClipSpec.sample_fps is 0.0: it must be a positive rate"),
        ({"sample_fps": float("nan")}, "ClipSpec.sample_fps is nan"),
        ({"crop_width": 129}, "crops 112x129 out of a short side of 128 pixels"),
        ({"mean": (0.1, 0.2)}, "ClipSpec.mean is .*three finite numbers"),
        ({"std": (1.0, float("inf"), 1.0)}, "ClipSpec.std is .*three finite numbers"),
        ({"std": (0.0, 1.0, 1.0)}, "ClipSpec.std is .*every value must be positive"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(ClipSpec(), **changes)
