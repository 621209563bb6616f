"""A vendor's toolchain in edgeact's words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgeact._capture import quiet_torchao
from edgeact.errors import EdgeactError, MissingDependencyError, ToolchainError

__all__ = ["first_line", "toolchain"]


def first_line(exc: BaseException) -> str:
    """Of what an exception says, the first line that says anything."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[0] if lines else repr(exc)


@contextmanager
def toolchain(
    failed: str,
    missing: MissingDependencyError | None = None,
    in_a_line: Callable[[BaseException], str] = first_line,
) -> Iterator[None]:
    """Translate a vendor's exceptions, of many classes; what it logs and warns of its own calls is not passed on.

    Args:
        failed: What could not be done, in front of the vendor's own words.
        missing: What to raise where it is not installed.
        in_a_line: Its words.

    Raises:
        MissingDependencyError: As given.
        ToolchainError: It failed.
    """
    try:
        with quiet_torchao():
            yield
    except (EdgeactError, OSError):
        raise  # a full or read-only disk is not the vendor's
    except Exception as exc:
        if missing is not None and isinstance(exc, ImportError):
            raise missing from exc
        raise ToolchainError(f"{failed}: {in_a_line(exc)}") from exc
