"""The options that every family takes: `width` and `dropout`."""

from edgeact.errors import InputError

__all__ = ["check_options", "scale_channels"]


def check_options(width: float, dropout: float) -> None:
    """Refuse a width or dropout that no network can be built with.

    Raises:
        InputError: One of them is out of range.
    """
    if not 0.05 <= width <= 8:
        raise InputError(f"width is {width}: it must be a multiple from 0.05 to 8 of the paper's channels")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}: it must be from 0 up to, not including, 1")


def scale_channels(width: float, *channels: int) -> list[int]:
    """Channel counts times `width`, rounded to multiples of 8, at least 8."""
    return [max(8, round(count * width / 8) * 8) for count in channels]
