import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lowering_checks import assert_lowers
from torch import nn

kernels = st.tuples(*[st.integers(1, 4)] * 3)
strides = st.tuples(*[st.integers(1, 3)] * 3)
paddings = st.tuples(*[st.integers(0, 2)] * 3)


def fits(frames, kernel, padding, dilation=1):
    # size >= k: torch's shape inference refuses AvgPool3d of a side that only its padding makes as large as the kernel
    return all(
        p <= k // 2 and size + 2 * p >= dilation * (k - 1) + 1 and size >= k
        for size, k, p in zip((frames, 7, 6), kernel, padding, strict=True)
    )


@given(kernels, strides, paddings, st.integers(1, 2), st.booleans(), st.integers(1, 7))
def test_max_pool3d(kernel, stride, padding, dilation, ceil, frames):
    assume(fits(frames, kernel, padding, dilation))
    assert_lowers(nn.MaxPool3d(kernel, stride, padding, dilation, ceil_mode=ceil), (1, 3, frames, 7, 6))


@given(kernels, strides, paddings, st.booleans(), st.booleans(), st.sampled_from([None, 3]), st.integers(1, 7))
def test_avg_pool3d(kernel, stride, padding, ceil, include, divisor, frames):
    assume(fits(frames, kernel, padding))
    pool = nn.AvgPool3d(kernel, stride, padding, ceil_mode=ceil, count_include_pad=include, divisor_override=divisor)
    assert_lowers(pool, (1, 3, frames, 7, 6))


@pytest.mark.parametrize("size", [1, (1, 1, 1), (2, 3, 3), (None, 1, 1), (3, None, 2), (7, 6, 6)])
@pytest.mark.parametrize("kind", [nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d])
def test_adaptive_pools(kind, size):
    assert_lowers(kind(size), (1, 3, 7, 6, 6))
