"""The Rucio that tests get: files that its own client reads, rules, tapes, restarts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pandaflow.testing.grid import random_name
from pandaflow.testing.rucio.environment import python, rucio_environment

pytest.importorskip("rucio", reason="no rucio-clients: extra 'rucio'")


def test_what_was_uploaded_can_be_downloaded_by_rucio_itself(rucio, tmp_path):
    dataset = random_name("ds")
    names = rucio.dataset("test", dataset, 3, "SITE_A", "SITE_B", events=10)
    from rucio.client.downloadclient import DownloadClient

    with rucio.here():
        client = DownloadClient(rucio.client())
        wanted = {"did": f"test:{dataset}", "base_dir": str(tmp_path), "rse": "SITE_B"}
        found = client.download_dids([wanted], num_threads=1)
    assert sorted(one["clientState"] for one in found) == ["DONE"] * 3
    for name in names:
        data = rucio.path("test", name, "SITE_A").read_bytes()
        assert (tmp_path / dataset / name).read_bytes() == data
        assert rucio.client().get_metadata("test", name)["events"] == 10


def test_tape_is_staged_file_by_file(rucio):
    dataset, client = random_name("tape"), rucio.client()
    names = rucio.dataset("test", dataset, 4, "TAPE_X")
    did = {"scope": "test", "name": dataset}
    (rule,) = client.add_replication_rule([did], 1, "SITE_A", activity="Staging")

    def locks() -> list[str]:
        return sorted(lock["state"] for lock in client.list_replica_locks(rule))

    assert locks() == ["REPLICATING"] * 4
    rucio.conveyor(limit=2)
    assert locks() == ["OK", "OK", "REPLICATING", "REPLICATING"]
    rucio.poll()
    assert locks() == ["OK"] * 4 and client.get_replication_rule(rule)["state"] == "OK"
    for name in names:
        data = rucio.path("test", name, "TAPE_X").read_bytes()
        assert rucio.path("test", name, "SITE_A").read_bytes() == data
    client.update_replication_rule(rule, {"lifetime": -1})
    rucio.clean()
    assert [one["id"] for one in client.list_did_rules("test", dataset)] == []


@pytest.mark.very_slow
def test_a_copy_that_goes_wrong_again_and_again_is_stuck(rucio):
    dataset, client = random_name("tape"), rucio.client()
    names = rucio.dataset("test", dataset, 2, "TAPE_X")
    (rule,) = client.add_replication_rule([{"scope": "test", "name": dataset}], 1, "SITE_B")
    for _ in range(4):
        rucio.conveyor(fail=names[:1])
    assert client.get_replication_rule(rule)["state"] == "STUCK"
    client.update_replication_rule(rule, {"boost_rule": True})
    rucio.repair()
    rucio.conveyor()
    assert client.get_replication_rule(rule)["state"] == "OK"
    assert rucio.path("test", names[0], "SITE_B").exists()


@pytest.mark.very_slow
def test_rules_follow_datasets_when_the_judge_has_run(rucio, tmp_path):
    dataset, client = random_name("open"), rucio.client()
    rucio.dataset("test", dataset, 1, "SITE_A")
    (rule,) = client.add_replication_rule([{"scope": "test", "name": dataset}], 1, "SITE_B")
    rucio.conveyor()
    late = tmp_path / random_name("late")
    late.write_bytes(b"late")
    rucio.upload("test", dataset, [late], "SITE_A")
    assert client.get_replication_rule(rule)["state"] == "OK"
    rucio.judge()
    assert client.get_replication_rule(rule)["state"] == "REPLICATING"
    rucio.conveyor()
    assert rucio.path("test", late.name, "SITE_B").read_bytes() == b"late"


@pytest.mark.very_slow
def test_it_comes_back_with_all_it_had(rucio):
    account, dataset = rucio.account(random_name("user")), random_name("ds")
    rucio.dataset("test", dataset, 1)
    client = rucio.client(account)
    rucio.restart()
    assert [file["bytes"] for file in client.list_files("test", dataset)] == [1_000]
    client.session.close()


@pytest.mark.very_slow
def test_on_postgresql(postgres):
    from pandaflow.testing.rucio.server import RucioServer

    with RucioServer(postgres.create_database()) as server:
        dataset = random_name("ds")
        server.dataset("test", dataset, 3, "SITE_A")
        (rule,) = server.client().add_replication_rule(
            [{"scope": "test", "name": dataset}], 1, "SITE_B"
        )
        server.conveyor()
        assert server.client().get_replication_rule(rule)["state"] == "OK"


@pytest.mark.very_slow
def test_the_environment_is_whole():
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python(rucio_environment()), "check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert Path(rucio_environment(), "empty.db").exists()
