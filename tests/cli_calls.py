"""The command line in the process of the tests."""

import signal

import pytest
import torch

from edgeact.cli import main

__all__ = ["call_cli"]


def call_cli(*arguments: object) -> int:
    """The exit status of `edgeact ARGUMENTS`; what it changes in its process is put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code
