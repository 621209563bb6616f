"""The command line: one verb per file, data on stdout, everything else on stderr.

Exit status: 0 held (or done), 1 fell short of a gate, 2 usage or input error.
"""

import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from edgeact.errors import EdgeactError, UnknownNameError

__all__ = ["interrupt_heard", "main"]

_INTERRUPT_AGAIN_S = 3.0  # longer than cleaning up takes
_VERBS = ("check", "compile", "describe", "diff", "export", "models", "run", "targets", "train", "validate")


class _Verbs(click.Group):
    """Imports a verb's file when it is asked for, so that `--help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _VERBS:
            raise UnknownNameError("command", args[0], _VERBS)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = importlib.import_module(f"edgeact.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as exc:  # before click, which prints an empty line even into a log
            if sys.stderr.isatty():
                click.echo(err=True)  # the terminal's own ^C stands there
            raise click.Abort from exc
        except EOFError as exc:  # which click would take for an interrupt
            raise RuntimeError(f"a file ended early: {exc}") from exc


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="edgeact")
def _edgeact() -> None:
    """Ship action-recognition networks to edge devices, and prove that nothing was lost on the way."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; a user's mistake is one line on stderr and exit status 2."""
    signal.signal(signal.SIGTERM, _interrupt)  # a terminated export cleans up like an interrupted one
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, _interrupt)
    try:
        status = _edgeact.main(args=arguments, prog_name="edgeact", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as exc:
        _fail(exc.format_message())
    except (KeyboardInterrupt, click.Abort):
        interrupt_heard()
        _fail("interrupted: nothing half-written was left behind")
    except EdgeactError as exc:
        _fail(str(exc))
    except OSError as exc:
        _fail(f"{exc.strerror or exc}" + (f": {exc.filename}" if exc.filename else ""))
    sys.exit(status if isinstance(status, int) else 0)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    # Python drops what a destructor or weakref callback raises, and torch runs many of them: ask again until heard.
    _repeat_interrupt(_INTERRUPT_AGAIN_S)
    raise KeyboardInterrupt


def interrupt_heard() -> None:
    """The interrupt that was raised is acted upon: it is not repeated."""
    _repeat_interrupt(0)


def _repeat_interrupt(seconds: float) -> None:
    """Interrupt again after that many seconds; 0 means no more."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _fail(message: str) -> NoReturn:
    from edgeact._terminal import plain

    click.echo("error: " + plain(" ".join(message.split())), err=True)  # it may quote a file that anyone wrote
    sys.exit(2)
