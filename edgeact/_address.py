"""Where a device is: `ssh://user@host:port`. What could be taken for an option of ssh, or for a secret, is refused."""

import re
from dataclasses import dataclass

from edgeact.errors import InputError

__all__ = ["Address"]

_FORM = "write ssh://user@host or ssh://user@host:port"
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+@$-]*")  # no leading "-": ssh would read an option
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")  # a name of ~/.ssh/config, a DNS name or an IP address
_URL = re.compile(r"ssh://(?:(?P<user>[^/]*)@)?(?:\[(?P<ipv6>[^/\]]*)\]|(?P<host>[^/:]*))(?::(?P<port>[^/]*))?/?")

_SECRET = re.compile(r"^([^:/]*://[^:]*:|[^:]*:).*@", re.DOTALL)  # a password may hold any of : / @ and a newline


@dataclass(frozen=True)
class Address:
    """A device that ssh can reach; user and port are those of ssh's own configuration where they are None."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read `ssh://[user@]host[:port]`.

        Raises:
            InputError: It is another URL, holds a password, or a name that ssh could misread.
        """
        if not url.startswith("ssh://"):
            raise InputError(f"--device {_without_secret(url)!r}: {_FORM}")
        parts = _URL.fullmatch(url)
        if parts is None:
            raise InputError(f"--device {_without_secret(url)!r}: {_FORM}; --python names the interpreter there")
        user, host, port = parts["user"], parts["ipv6"] or parts["host"], parts["port"]
        if user is not None and ":" in user:
            raise InputError(
                f"--device {_without_secret(url)!r} holds a password: it would stand in the history and the process "
                "list; log in with a key (ssh-copy-id)"
            )
        if user is not None and not _USER.fullmatch(user):
            raise InputError(f"--device {url!r} has a user name that ssh does not take: {user!r}")
        if not _HOST.fullmatch(host or ""):
            raise InputError(f"--device {url!r} has a host name that ssh does not take: {host!r}")
        if port is not None and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise InputError(f"--device {url!r} has the port {port!r}: it is a number from 1 to 65535")
        return cls(host, user, int(port) if port is not None else None)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def _without_secret(url: str) -> str:
    """`url` with what may be a password hidden: all from the colon after the user to the last `@`."""
    return _SECRET.sub(r"\1***@", url)
