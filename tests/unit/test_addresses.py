"""Addresses of sockets: what is understood, what is refused, what a client dials."""

from __future__ import annotations

import os

import pytest

from ckptmesh.errors import Closed, InvalidUrl
from ckptmesh.sockets import Owner, address, dialable


@pytest.mark.parametrize(
    "url",
    ["tcp://127.0.0.1:7701", "tcp://host.example:1", "tcp://[::1]:65535", "tcp://*:*",
     "ipc:///tmp/a", "ipc://@abstract"],
)
def test_a_known_address_stays_as_it_is(url: str) -> None:
    assert address(url).url == url


def test_a_relative_unix_path_is_made_absolute() -> None:
    assert address("ipc://a/../b").url == f"ipc://{os.getcwd()}/b"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "tcp://HOST:PORT"), ("127.0.0.1:7701", "tcp://HOST:PORT"), ("tcp://", "tcp://HOST"),
        ("http://127.0.0.1:80", "ipc://PATH"), ("inproc://x", "ipc://PATH"),
        ("tcp://127.0.0.1", "host and a port"), ("tcp://:7701", "host and a port"),
        ("tcp://host:65536", "1 to 65535"), ("tcp://host:-1", "1 to 65535"),
        ("tcp://host:7٣", "1 to 65535"), ("tcp://::1:7701", "brackets"),
        ("ipc:///" + "x" * 107, "108 bytes"),
    ],
)
def test_what_is_no_address_is_refused_with_what_is_known(url: str, said: str) -> None:
    with pytest.raises(InvalidUrl, match=said.replace("[", r"\[")):
        address(url)


@pytest.mark.parametrize(
    ("publish", "request_url", "expected"),
    [
        ("tcp://0.0.0.0:7702", "tcp://broker:7701", "tcp://broker:7702"),
        ("tcp://[::]:7702", "tcp://[::1]:7701", "tcp://[::1]:7702"),
        ("tcp://*:7702", "ipc:///run/x", "tcp://127.0.0.1:7702"),
        ("tcp://10.0.0.1:7702", "tcp://broker:7701", "tcp://10.0.0.1:7702"),
        ("ipc:///run/p", "tcp://broker:7701", "ipc:///run/p"),
        ("", "tcp://broker:7701", ""),
    ],
)
def test_a_wildcard_host_is_the_host_that_the_client_reached(
    publish: str, request_url: str, expected: str
) -> None:
    assert dialable(publish, request_url) == expected


@pytest.mark.fault(12)
def test_a_forked_child_is_told_to_connect_anew() -> None:
    owner = Owner()
    owner.check()
    child = os.fork()
    if child == 0:
        try:
            owner.check()
        except Closed:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
