"""A progress bar on stderr, or nothing; on a device, lines to the machine that draws it."""

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["Told", "progress_bar", "tell_progress", "waiting"]

Told = Callable[[str, int, int], None]  # what, steps done, steps in all
_listeners: list[Told] = []


@contextlib.contextmanager
def tell_progress(listener: Told) -> Iterator[None]:
    """Within the block, bars that would be shown call `listener` instead."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def progress_bar(what: str, total: int, show: bool) -> Iterator[Callable[[], None]]:
    """A function that moves the bar by one step; nothing is drawn (nor rich imported) unless `show`."""
    if not show:
        yield lambda: None
        return
    if _listeners:
        yield _teller(what, total, _listeners[-1])
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


@contextlib.contextmanager
def waiting(what: str, *, shown: bool) -> Iterator[None]:
    """Show that `what` goes on, and since when; nothing is drawn (nor rich imported) unless `shown`."""
    if not shown or _listeners:
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(what, total=None)
        yield


def _teller(what: str, total: int, listener: Told) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        listener(what, done, total)

    listener(what, done, total)
    return step
