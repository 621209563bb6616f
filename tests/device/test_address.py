import pytest

from edgeact._address import Address
from edgeact.errors import InputError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ssh://nano", Address("nano")),
        ("ssh://me@nano/", Address("nano", "me")),
        ("ssh://me@10.0.0.7:2222", Address("10.0.0.7", "me", 2222)),
        ("ssh://me@[fe80::1%eth0]:22", Address("fe80::1%eth0", "me", 22)),
        ("ssh://Board_3.lab", Address("Board_3.lab")),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ssh://me@h:22", "me@h:22"),
        ("ssh://h", "h"),
        ("ssh://[::1]:1", "[::1]:1"),
        ("ssh://me@[fe80::1%eth0]", "me@[fe80::1%eth0]"),
    ],
)
def test_an_address_is_shown_as_it_was_given(url: str, shown: str) -> None:
    assert str(Address.parse(url)) == shown


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("me@nano", "'me@nano': write ssh://user@host"),
        ("http://nano", "write ssh://user@host"),
        ("ssh://nano/usr/bin/python3", "--python names the interpreter there"),
        ("ssh://me@nano?x", "a host name that ssh does not take: 'nano\\?x'"),
        ("ssh://", "a host name that ssh does not take: ''"),
        ("ssh://-oProxyCommand=touch", "a host name that ssh does not take: '-oProxyCommand=touch'"),
        ("ssh://-oProxyCommand=x@nano", "a user name that ssh does not take: '-oProxyCommand=x'"),
        ("ssh://a b@nano", "a user name that ssh does not take"),
        ("ssh://me@na;no", "a host name that ssh does not take"),
        ("ssh://nano:0", "has the port '0': it is a number from 1 to 65535"),
        ("ssh://nano:x", "has the port 'x'"),
        ("ssh://nano:70000", "has the port '70000'"),
        ("ssh://nano:²", "has the port '²'"),
    ],
)
def test_addresses_that_are_none(url: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Address.parse(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ssh://me:secret@nano", "ssh://me:***@nano"),
        ("me:secret@nano", "me:***@nano"),
        ("ssh://me:secret@nano/path", "ssh://me:***@nano/path"),
        ("ssh://:secret@nano", "ssh://:***@nano"),
        ("ssh://me:se@cret@nano", "ssh://me:***@nano"),
        ("ssh://me:s:e@cr@et@nano", "ssh://me:***@nano"),
        ("ssh://me:se/cret@nano", "ssh://me:***@nano"),
        ("ssh://me:se://cret@nano", "ssh://me:***@nano"),
        ("ssh://m@e:se\ncret@nano", "ssh://m@e:***@nano"),
        ("http://me:se@cret@nano:22", "http://me:***@nano:22"),
        ("me:se@cret://@nano", "me:***@nano"),
    ],
)
def test_a_password_is_refused_and_not_repeated(url: str, shown: str) -> None:
    with pytest.raises(InputError) as error:
        Address.parse(url)
    message = str(error.value)
    assert message.startswith(f"--device {shown!r}")
    assert "holds a password" in message or "write ssh://user@host" in message
