"""Keys for a cluster: who has them, and what happens to those who have not."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from distributed.security import Security

from pandaflow.executors import tls


@pytest.fixture(scope="module")
def keys() -> tuple[Security, dict[str, str]]:
    return tls.make()


@pytest.fixture(scope="module")
def cluster(keys: tuple[Security, dict[str, str]]) -> Iterator[LocalCluster]:
    """A scheduler that asks for keys; it has no workers yet."""
    with LocalCluster(
        n_workers=0,
        host="127.0.0.1",
        protocol="tls",
        security=keys[0],
        dashboard_address=":0",
        scheduler_kwargs={"dashboard": False},
    ) as made:
        yield made


def test_what_is_made_is_text_and_different_each_time(
    keys: tuple[Security, dict[str, str]],
) -> None:
    _, texts = keys
    assert "BEGIN CERTIFICATE" in texts["cert.pem"]
    assert "PRIVATE KEY" in texts["key.pem"] and "PRIVATE KEY" not in texts["cert.pem"]
    assert tls.make()[1]["key.pem"] != texts["key.pem"]


def test_keys_are_kept_for_the_user_only(
    keys: tuple[Security, dict[str, str]], tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        folder = tls.keep(keys[1], str(tmp_path / "keys"))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path(folder).iterdir()}
    assert modes == {"cert.pem": 0o600, "key.pem": 0o600}
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    assert tls.keep(keys[1], folder) == folder, "each worker of a pilot keeps them again"


def test_who_has_the_keys_is_let_in(
    cluster: LocalCluster, keys: tuple[Security, dict[str, str]], tmp_path: Path
) -> None:
    security = tls.load(tls.keep(keys[1], str(tmp_path / "keys")))
    assert security.require_encryption
    with Client(cluster.scheduler_address, security=keys[0], set_as_default=False) as client:
        assert client.status == "running"


def test_a_worker_of_ours_is_let_in(
    cluster: LocalCluster, keys: tuple[Security, dict[str, str]], tmp_path: Path
) -> None:
    folder = tls.keep(keys[1], str(tmp_path / "keys"))
    options = {"scheduler": cluster.scheduler_address, "tls": folder}
    options |= {"local_directory": str(tmp_path), "memory_limit": "0"}
    script = (
        "import os; from pandaflow.executors import worker;"
        f"worker.run(worker.Options(**{options!r}), lambda: os.read(0, 1))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    try:
        with Client(cluster.scheduler_address, security=keys[0], set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            assert client.submit(sum, [1, 2]).result(timeout=30) == 3
            (address,) = client.scheduler_info()["workers"]
            assert address.startswith("tls://")
    finally:
        process.communicate(timeout=30)  # it ends when its input does


def test_other_keys_are_refused(cluster: LocalCluster) -> None:
    stranger, _ = tls.make()
    with pytest.raises(OSError, match="TLS certificate does not match"):
        Client(cluster.scheduler_address, security=stranger, set_as_default=False, timeout=2)


def test_no_keys_are_refused(cluster: LocalCluster) -> None:
    clear = cluster.scheduler_address.replace("tls://", "tcp://")

    async def knock() -> None:
        client = await Client(clear, asynchronous=True, set_as_default=False, timeout=2)
        await client.close()

    with pytest.raises(OSError, match=r"onnection reset|closed"):
        asyncio.run(knock())


def test_plain_bytes_get_no_answer(cluster: LocalCluster) -> None:
    host, _, port = cluster.scheduler_address.rpartition("://")[2].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        try:
            answer = connection.recv(1000)
        except ConnectionResetError:
            answer = b""
    assert b"HTTP" not in answer and b"distributed" not in answer
