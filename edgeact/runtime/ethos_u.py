"""An Ethos-U runs its bundle from an app, with TensorFlow Lite Micro and Arm's driver: nothing of it runs in Python."""

from pathlib import Path

from edgeact.errors import ToolchainError

__all__ = ["MODULES", "Runner"]

MODULES = ()  # it is never installed, so `ethos_u_reference` stands in for it


class Runner:
    """None.

    Raises:
        ToolchainError: Always.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int = 0) -> None:
        raise ToolchainError("an Ethos-U is run by an app on the device: ethos_u_reference stands in for it here")
