"""What the exporter is started with."""

import argparse

import pytest

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.exporter.options import Address, add_arguments, addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9762", "127.0.0.1", 9762),
        ("[::1]:0", "::1", 0),
        ("localhost:1", "localhost", 1),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == (host, port)
    assert str(Address.parse(text)) == text


def test_a_port_alone_is_every_address() -> None:
    assert Address.parse(":9762").host in ("::", "0.0.0.0")


@pytest.mark.parametrize(
    "text", ["", "9762", "127.0.0.1", "::1:9762", "127.0.0.1:65536", "http://x:1", "x:-1", "x:1\n"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(VirtRaplError, match="--web"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ([], ["127.0.0.1:9762"]),
        (["--web.listen-address=[::1]:1", "--web.listen-address", "localhost:2"], ["[::1]:1", "localhost:2"]),
    ],
)
def test_where_it_listens(words: list[str], where: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert list(map(str, addresses(parser.parse_args(words)))) == where
