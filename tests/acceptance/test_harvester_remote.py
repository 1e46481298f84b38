"""The harvester with pilots elsewhere: by ssh on a real sshd, as Jobs on the stand-in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

from pandaflow.cli.app import app
from pandaflow.grid.http import GridClient
from pandaflow.grid.messages import Bundle, CommandJob, Needs
from pandaflow.grid.places import Provision, QueueBody
from pandaflow.testing.grid import GridServer
from pandaflow.testing.kubernetes import Cluster, ClusterMissing
from pandaflow.testing.kubernetes.cluster import PROGRAM
from pandaflow.testing.sshd import Sshd, SshdMissing
from pandaflow_pilot.archive import build

pytestmark = pytest.mark.timeout(180)


def until(holds: Callable[[], Any], patience: float = 90.0) -> None:
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.1)


def table(name: str, values: dict[str, Any]) -> str:
    """Return a table of TOML, whose strings, numbers and lists are those of JSON."""
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(v)}\n" for key, v in plain.items())


def fill(client: GridClient, queue: str, count: int) -> None:
    provision = Provision(max_pilots=2, idle=1.0)
    client.put_queue(queue, QueueBody(site={"cores": 1}, heartbeat=10.0, provision=provision))
    client.open_run(f"run-{queue}")
    command = CommandJob(position=0, line="true", shell=True)
    bundles = [
        Bundle(bundle=number, task="t", jobs=(number,), kind="command", commands=(command,),
               needs=Needs(queue=queue))
        for number in range(count)
    ]  # fmt: skip
    assert client.submit(f"run-{queue}", bundles) == {}


def run_to_the_end(folder: Path, server: GridServer, queue: str, tables: str) -> str:
    """Let a harvester serve a queue with work until its pilots have done it and gone."""
    config = folder / "harvester.toml"
    head = {"server": server.url, "state": folder / "state", "every": "0.3 s"}
    config.write_text(table("harvester", head) + tables)
    command = [sys.executable, "-m", "pandaflow.cli", "harvester", "--config", str(config)]
    with server.client() as client:
        fill(client, queue, 12)
        shown = CliRunner().invoke(app, ["harvester", "--config", str(config), "--check"])
        assert shown.exit_code == 0, shown.output
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            until(lambda: {row["state"] for row in client.bundle_rows(f"run-{queue}")} == {"ended"})
            until(lambda: not any(row["alive"] and row["running"] for row in client.pilots(queue)))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        drained = subprocess.run([*command, "--drain"], capture_output=True, text=True, check=True)
        assert "no pilot is left" in drained.stderr
        pilots = {row["pilot"] for row in client.pilots(queue)}
        assert 1 <= len(pilots) <= 2, (folder / "log").read_text()
    return shown.output


def test_pilots_by_ssh(tmp_path: Path) -> None:
    try:
        host = Sshd()
    except SshdMissing as error:
        pytest.skip(str(error))
    archive = build(tmp_path / "pilot.pyz")
    program = [sys.executable, str(archive)]
    with host, GridServer() as server:
        tables = table("queues.far", {"program": program}) + table(
            "queues.far.ssh", host.settings(folder=str(tmp_path / "there"), grace=5)
        )
        shown = run_to_the_end(tmp_path, server, "far", tables)
        assert "exec /bin/sh -s" in shown and "setsid" in shown


def test_pilots_as_jobs(tmp_path: Path) -> None:
    try:
        cluster = Cluster()
    except ClusterMissing as error:
        pytest.skip(str(error))
    with cluster, GridServer() as server:
        tables = table("queues.pods", {"program": list(PROGRAM)}) + table(
            "queues.pods.kubernetes", dict(cluster.settings(grace=5))
        )
        shown = run_to_the_end(tmp_path, server, "pods", tables)
        assert "kind: Job" in shown
