"""Inputs that Rucio brings: from which replica, and what is said of those that are wrong."""

from __future__ import annotations

import builtins
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from pandaflow.testing.grid import random_name
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.leases import Input
from pandaflow_pilot.rucio import Rucio
from pandaflow_pilot.stagein import stage_in

pytest.importorskip("rucio", reason="no rucio-clients: extra 'rucio'")


def fine() -> None:
    pass


@pytest.fixture
def bring(rucio, tmp_path):
    """Stage in a file of the scope ``test``; return what came."""
    pauses: list[float] = []

    def stage(name: str, *rses: str, catalogue: Any = None, **fields: Any) -> bytes:
        url = f"rucio://test:{name}"
        given = Input("in/x", (url,), fields.get("size"), fields.get("checksum", ""))
        with rucio.here(fields.get("account", "root")):
            stage_in(given, str(tmp_path), fine, pauses.append, catalogue or Rucio(rses))
        return (tmp_path / "in" / "x").read_bytes()

    stage.pauses = pauses  # type: ignore[attr-defined]
    return stage


def refused(bring: Any, name: str, *rses: str, **fields: Any) -> PilotError:
    with pytest.raises(PilotError) as caught:
        bring(name, *rses, **fields)
    return caught.value


def made(rucio: Any, *elements: str) -> str:
    (name,) = rucio.dataset("test", random_name("ds"), 1, *elements)
    return str(name)


def test_replicas_of_near_elements_come_first(rucio, bring, caplog):
    name = made(rucio, "SITE_A", "SITE_B")
    data = rucio.path("test", name, "SITE_A").read_bytes()
    for near, far in (("SITE_A", "SITE_B"), ("SITE_B", "SITE_A")):
        path = rucio.path("test", name, far)
        path.unlink()
        assert bring(name, near) == data
        path.write_bytes(data)
    assert rucio.suspicious("test", name) == {}
    assert caplog.text == ""


@pytest.mark.parametrize("account", ["root", "user"])
def test_a_corrupt_replica_is_declared_and_another_used(rucio, bring, account, caplog):
    name = made(rucio, "SITE_A", "SITE_B")
    if account == "user":
        account = rucio.account(random_name("user"))
    data = rucio.path("test", name, "SITE_B").read_bytes()
    rucio.corrupt("test", name, "SITE_A")
    assert bring(name, "SITE_A", account=account) == data
    assert rucio.suspicious("test", name) == {"SITE_A": 1}
    assert "SITE_A" in caplog.text and "declared suspicious" in caplog.text


def test_what_was_wrong_once_is_tried_last(rucio, bring):
    name = made(rucio, "SITE_A", "SITE_B")
    rucio.corrupt("test", name, "SITE_A")
    catalogue = Rucio(["SITE_A"])
    bring(name, catalogue=catalogue)
    rucio.lose("test", name, "SITE_A")
    bring(name, catalogue=catalogue)
    assert rucio.suspicious("test", name) == {"SITE_A": 1}


def test_a_file_that_is_nowhere(rucio, bring):
    name = made(rucio, "SITE_A", "SITE_B")
    rucio.lose("test", name, "SITE_A")
    rucio.lose("test", name, "SITE_B")
    error = refused(bring, name)
    trouble = error.trouble()
    assert trouble["kind"] == "input" and error.code.name == "input_missing"
    for word in (name, "SITE_A", "SITE_B", "declared suspicious"):
        assert word in trouble["message"]
    assert rucio.suspicious("test", name) == {"SITE_A": 1, "SITE_B": 1}
    assert bring.pauses == []


def test_a_folder_that_this_node_does_not_see_says_nothing_of_the_file(rucio, bring):
    name = made(rucio, "SITE_A", "SITE_B")
    folder = rucio.path("test", name, "SITE_A").parent
    folder.rename(folder.with_name("away"))
    assert len(bring(name, "SITE_A")) == 1_000
    assert rucio.suspicious("test", name) == {}


def test_tape_is_not_read(rucio, bring):
    error = refused(bring, made(rucio, "TAPE_X"))
    assert "TAPE_X: is on tape" in str(error)
    assert error.code.kind == "input"


def test_what_rucio_does_not_have(rucio, bring):
    assert refused(bring, random_name("nothing")).code.name == "input_missing"
    dataset = random_name("ds")
    rucio.dataset("test", dataset, 2)
    assert "dataset" in str(refused(bring, dataset))
    with pytest.raises(PilotError, match="SCOPE:NAME"):
        Rucio().bring(Input("x", (), None, ""), "rucio://nonsense", "/nowhere", fine)
    assert bring.pauses == []


def test_a_job_that_wants_another_content_blames_no_replica(rucio, bring):
    name = made(rucio, "SITE_A")
    assert refused(bring, name, size=999).code.name == "input_size"
    error = refused(bring, name, checksum="adler32:00000001")
    assert error.code.name == "input_checksum" and "adler32:00000001" in str(error)
    assert refused(bring, name, checksum="md5:" + "0" * 32).code.name == "input_checksum"
    data = rucio.path("test", name, "SITE_A").read_bytes()
    good = hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert bring(name, size=1_000, checksum=f"md5:{good}") == data
    assert rucio.suspicious("test", name) == {}


def test_a_server_that_comes_back(rucio, bring, tmp_path):
    name = made(rucio, "SITE_A")
    catalogue = Rucio()
    bring(name, catalogue=catalogue)
    given = Input("again", (f"rucio://test:{name}",), None, "")
    rucio.stop()
    try:
        with rucio.here():
            stage_in(given, str(tmp_path), fine, lambda seconds: rucio.start(), catalogue)
    finally:
        rucio.restart()
    assert (tmp_path / "again").stat().st_size == 1_000


def test_wrong_credentials_are_final_and_not_told(rucio, bring, tmp_path, monkeypatch):
    account = rucio.account(random_name("user"))
    path = Path(rucio.environment(account)["RUCIO_CONFIG"])
    text = path.read_text().replace("password = ", "password = not-the-")
    monkeypatch.setattr(rucio, "environment", lambda name: {"RUCIO_CONFIG": str(path)})
    path.write_text(text)
    error = refused(bring, made(rucio, "SITE_A"), account=account)
    assert "CannotAuthenticate" in str(error) and "not-the-" not in str(error)
    assert bring.pauses == []


def test_xrootd(rucio, bring, caplog):
    if rucio.xrootd is None:
        pytest.skip("no XRootD")
    name = made(rucio, "SITE_A", "XROOTD_C")
    data = rucio.path("test", name, "SITE_A").read_bytes()
    rucio.corrupt("test", name, "SITE_A")
    assert bring(name, "SITE_A") == data
    rucio.path("test", name, "SITE_A").write_bytes(data)
    rucio.lose("test", name, "XROOTD_C")
    assert bring(name, "XROOTD_C") == data
    assert rucio.suspicious("test", name) == {"SITE_A": 1, "XROOTD_C": 1}
    assert "root://" in caplog.text


def test_without_the_package(tmp_path, monkeypatch):
    import_ = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("rucio."):
            raise ImportError(name)
        return import_(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    given = Input("x", ("rucio://test:x",), None, "")
    with pytest.raises(PilotError, match="pip install rucio-clients") as caught:
        stage_in(given, str(tmp_path), fine, lambda seconds: None, Rucio())
    assert caught.value.code.kind == "input"


def test_a_replica_elsewhere_helps_where_rucio_does_not(tmp_path):
    (tmp_path / "there").write_bytes(b"abc")
    given = Input("x", ("rucio://test:x", str(tmp_path / "there")), 3, "")
    os.environ.pop("RUCIO_CONFIG", None)
    stage_in(given, str(tmp_path), fine, lambda seconds: None, Rucio())
    assert (tmp_path / "x").read_bytes() == b"abc"
