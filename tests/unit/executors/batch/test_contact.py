"""Where the driver is, as a file."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.errors import DataError
from pandaflow.executors.batch.contact import (
    Contact,
    answering,
    own_addresses,
    read_contact,
    read_order,
    write_order,
)
from pandaflow.executors.batch.slots import Slot

CONTACT = Contact(id="a", addresses=("tls://10.0.0.1:80",), tls={"key.pem": "secret"})


@pytest.fixture
def listener() -> Iterator[int]:
    """A port at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# --- the file ---------------------------------------------------------------------------


@given(
    st.text(),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.text()),
    st.booleans(),
)
def test_text_and_back(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    addresses: list[str],
    tls: dict[str, str],
    over: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "contact.json"
    contact = Contact(id=name, addresses=tuple(addresses), tls=tls, over=over)
    contact.write(path)
    assert read_contact(path) == contact


def test_only_the_user_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        CONTACT.write(tmp_path / "contact.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "contact.json").stat().st_mode) == 0o600


def test_a_wide_open_file_of_before_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "contact.json"
    for name in ("contact.json", "contact.json.part"):
        (tmp_path / name).write_text("left over")
        (tmp_path / name).chmod(0o666)
    CONTACT.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["contact.json"]


def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    path, over, seen = tmp_path / "contact.json", threading.Event(), set()
    CONTACT.write(path)

    def read() -> None:
        while not over.is_set():
            contact = read_contact(path)
            seen.add(len(contact.addresses) if contact else None)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        Contact(id=str(number), addresses=("x" * 50,) * (1 + 999 * (number % 2))).write(path)
    over.set()
    reader.join()
    assert seen <= {1, 1000} and seen


def test_nothing_there(tmp_path: Path) -> None:
    assert read_contact(tmp_path / "contact.json") is None
    assert read_contact(tmp_path) is None


GOOD = {"id": "a", "addresses": [], "tls": {}, "over": False}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "12",
        *(json.dumps({k: v for k, v in GOOD.items() if k != name}) for name in GOOD),
        json.dumps({**GOOD, "tls": "no"}),
        json.dumps({**GOOD, "addresses": 3}),
    ],
)
def test_garbage(tmp_path: Path, text: str) -> None:
    path = tmp_path / "contact.json"
    path.write_text(text)
    with pytest.raises(DataError, match="is no contact"):
        read_contact(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "contact.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no contact"):
        read_contact(path)


def test_an_order_reaches_its_pilot_only(tmp_path: Path) -> None:
    path, slot = tmp_path / "contact.json", Slot(2, cores=3, gpus=1)
    assert read_order(path, "7") is None
    write_order(path, "7", slot)
    assert read_order(path, "7") == slot
    assert read_order(path, "8") is None
    write_order(path, "7", Slot(1))
    assert read_order(path, "7") == Slot(1)


@pytest.mark.parametrize("said", [b"", b"{", b"\xff\xfe", b'{"count": "x"}'])
def test_an_order_that_is_garbage_changes_nothing(tmp_path: Path, said: bytes) -> None:
    (tmp_path / "7.slot").write_bytes(said)
    assert read_order(tmp_path / "contact.json", "7") is None


# --- addresses --------------------------------------------------------------------------


def test_the_first_that_answers(listener: int) -> None:
    dead, alive = f"tcp://127.0.0.1:{closed_port()}", f"tls://127.0.0.1:{listener}"
    assert answering([dead, alive]) == alive
    assert answering([dead]) == answering([]) == ""


@pytest.mark.parametrize("address", ["", "x", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:x"])
def test_what_is_no_address_does_not_answer(address: str) -> None:
    assert answering([address]) == ""


def test_ipv6_is_understood() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with server:
        address = f"tcp://[::1]:{server.getsockname()[1]}"
        assert answering([address]) == address


@pytest.mark.parametrize("url", ["tcp://10.1.2.3:99", "tls://login.example.org:8786"])
def test_one_network_is_one_address(url: str) -> None:
    assert own_addresses(url) == (url,)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", ""])
def test_all_networks_are_all_addresses_loopback_last(host: str) -> None:
    found = own_addresses(f"tls://{host}:4321")
    mine = {
        address.address
        for each in psutil.net_if_addrs().values()
        for address in each
        if address.family == socket.AF_INET
    }
    assert set(found) == {f"tls://{one}:4321" for one in mine}
    loopback = [one.startswith("tls://127.") for one in found]
    assert loopback == sorted(loopback)
    assert len(found) == len(set(found))
