"""Which endpoints runs may use, and as whom: sign-in, versions, several endpoints, nodes."""

from __future__ import annotations

import base64
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("globus_compute_sdk", reason="no Globus Compute SDK: extra 'globus'")

import pandaflow as pf
from pandaflow.core.brokerage import Site
from pandaflow.core.errors import SiteError
from pandaflow.testing import payloads
from pandaflow.testing.globus.endpoint import Endpoint, mpi_missing
from pandaflow.testing.globus.local import Globus
from pandaflow.testing.globus.tokens import CLIENT_ID, CLIENT_SECRET
from tests.acceptance.globus_work import (
    all_noted,
    double,
    failures,
    site,
    two_stages,
)

pytestmark = pytest.mark.timeout(240)


@pf.task
def broken(x: int) -> int:
    print("it talks", x)
    raise ValueError("broken on purpose")


@pf.workflow
def spoken() -> Any:
    return pf.command("echo %IN", name="told")(pf.items(["hello"]))


@pf.workflow
def all_kinds() -> Any:
    gone = pf.command("no-such-program", name="gone")
    return double(pf.items(range(3))), broken(pf.items([1])), gone(pf.items([1])), spoken()


# --- sign-in ----------------------------------------------------------------------------


def test_nobody_is_signed_in(
    globus: Globus, endpoint: Endpoint, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOBUS_COMPUTE_CLIENT_ID")
    monkeypatch.delenv("GLOBUS_COMPUTE_CLIENT_SECRET")
    globus.service.log.clear()
    with pytest.raises(SiteError, match="globus-compute-endpoint login"):
        two_stages(10).run(executor=site(endpoint.id), store=store)
    assert globus.service.log.of("submit") == []


def test_a_wrong_secret_is_named_and_not_shown(
    globus: Globus,
    endpoint: Endpoint,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", "hunter-of-secrets")
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path))
    with pytest.raises(SiteError, match="GLOBUS_COMPUTE_CLIENT_SECRET") as caught:
        two_stages(10).run(executor=site(endpoint.id), store=store)
    assert globus.service.log.of("token", 401)
    assert "hunter-of-secrets" not in "".join(traceback.format_exception(caught.value))


def test_nothing_of_the_sign_in_is_kept(
    globus: Globus,
    endpoint: Endpoint,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Jobs that succeed, talk and fail, and a service that refuses; and then look everywhere."""
    caplog.set_level(logging.DEBUG, "pandaflow")
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path_factory.mktemp("sdk")))
    globus.service.faults.answer(503, "submit")
    executor = site(endpoint.id, tmp_path / "data")
    store = f"sqlite:///{tmp_path}/store.db"
    run = all_kinds().run(executor=executor, store=store)
    assert globus.service.log.of("token", 200), "this client has signed in"
    assert {job["task"] for job in run.jobs(status="failed")} == {"broken", "gone"}
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.suffix for path in written} >= {".db", ".values", ".log", ".json"}
    said = [caplog.text, repr(executor), repr(executor.settings), repr(run)]
    said += [run.logs(f"{job['task']}[{job['index']}]") for job in run.jobs()]
    said += [str(job["failure"]) for job in run.jobs(status="failed")]
    everything = b"\n".join([*written.values(), *(text.encode() for text in said)])
    secret = f"{CLIENT_ID}:{CLIENT_SECRET}".encode()
    secrets = [CLIENT_SECRET.encode(), base64.b64encode(secret)]
    for word in (*secrets, *(token.encode() for token in globus.service.tokens.issued())):
        assert word not in everything


# --- endpoints --------------------------------------------------------------------------


def test_an_endpoint_that_nobody_knows(globus: Globus, endpoint: Endpoint, store: str) -> None:
    nobody = "00000000-0000-0000-0000-000000000001"
    with pytest.raises(SiteError, match=nobody):
        two_stages(10).run(executor=pf.executors.GlobusCompute(nobody), store=store)


def test_an_endpoint_that_cannot_start_fails_its_jobs(endpoint: Endpoint, store: str) -> None:
    config = {"engine": "NoSuchEngine"}
    executor = pf.executors.GlobusCompute(endpoint.id, user_endpoint_config=config)
    run = two_stages(10).run(executor=executor, store=store)
    assert run.status == "failed"
    (message,) = {failure["message"] for failure in failures(run)}
    assert "NoSuchEngine" in message


# --- versions ---------------------------------------------------------------------------

#: A PandaFlow that is not this one.
OLDER = '__version__ = "0.0.1"\n'
#: This one, under what calls itself another Python.
NEWER = """\
import sys
from collections import namedtuple
__file__ = {file!r}
__path__ = [{folder!r}]
exec(compile(open(__file__).read(), __file__, "exec"))
names = "major minor micro releaselevel serial"
sys.version_info = namedtuple("version_info", names)(3, 99, 1, "final", 0)
"""


def shadowed(globus: Globus, name: str, folder: Path, package: str) -> Endpoint:
    """Return an endpoint whose workers find another package ``pandaflow`` first."""
    (folder / name / "pandaflow").mkdir(parents=True)
    (folder / name / "pandaflow" / "__init__.py").write_text(package)
    return globus.endpoint(name, {"PYTHONPATH": str(folder / name)})


def test_another_pandaflow_there_is_told_before_any_job_is_sent(
    globus: Globus, store: str, tmp_path: Path
) -> None:
    older = shadowed(globus, "older", tmp_path, OLDER)
    executor, known = site(older.id), len(globus.service.tasks())
    run = two_stages(10).run(executor=executor, store=store)
    (message,) = {failure["message"] for failure in failures(run)}
    assert f"endpoint {older.id} has PandaFlow 0.0.1 and this driver {pf.__version__}" in message
    assert f"pip install pandaflow=={pf.__version__}" in message
    assert len(globus.service.tasks()) == known + 1, "only the probe was sent"
    assert spoken().run(executor=executor, store=store).result() == ["hello"]


def test_another_python_there_gets_only_what_it_can_run(
    globus: Globus, store: str, tmp_path: Path
) -> None:
    here = Path(pf.__file__)
    text = NEWER.format(file=str(here), folder=str(here.parent))
    newer = shadowed(globus, "newer", tmp_path, text)
    executor = site(newer.id)

    @pf.workflow
    def flow() -> Any:
        return double(pf.items(range(3))), pf.task(payloads.listed)(pf.items([2])), spoken()

    run = flow().run(executor=executor, store=store)
    assert {job["task"] for job in run.jobs(status="failed")} == {"double"}
    (message,) = {failure["message"] for failure in failures(run)}
    for what in ("double travels as byte code", "runs Python 3.99", "pf.task(module.function)"):
        assert what in message
    assert {job["task"] for job in run.jobs(status="finished")} == {"listed", "spoken/told"}


# --- several endpoints ------------------------------------------------------------------


@pytest.fixture
def second(globus: Globus) -> Endpoint:
    return globus.endpoint("second")


def test_several_endpoints_share_the_work(
    globus: Globus, endpoint: Endpoint, second: Endpoint, store: str, tmp_path: Path
) -> None:
    sites = [Site("one", queue=endpoint.id, cores=2), Site("two", queue=second.id, cores=2)]
    executor = pf.executors.GlobusCompute(
        endpoints=sites, data=str(tmp_path / "data"), poll_seconds=1.0
    )
    run = all_noted(40, str(tmp_path), 0.5).run(executor=executor, store=store)
    assert run.result() == list(range(40))
    assert {job["site"] for job in run.jobs()} == {"one", "two"}


def test_an_endpoint_that_is_offline_gets_nothing(
    globus: Globus, endpoint: Endpoint, second: Endpoint, store: str, tmp_path: Path
) -> None:
    globus.service.force_offline(second.id)
    sites = [Site("off", queue=second.id), Site("on", queue=endpoint.id)]
    executor = pf.executors.GlobusCompute(endpoints=sites, data=str(tmp_path / "data"))
    run = all_noted(4, str(tmp_path), 0.0).run(executor=executor, store=store)
    assert {job["site"] for job in run.jobs()} == {"on"}


# --- nodes ------------------------------------------------------------------------------


def test_more_nodes_than_there_are_is_refused_at_once(
    globus: Globus, endpoint: Endpoint, store: str
) -> None:
    wide = pf.command("true", name="wide").options(nodes=3)

    @pf.workflow
    def flow() -> Any:
        return wide(pf.items([1]))

    site = Site("leader", queue=endpoint.id, nodes=2)
    run = flow().run(executor=pf.executors.GlobusCompute(site), store=store)
    (failure,) = failures(run)
    assert failure["kind"] == "unfit"
    assert "asks for 3 nodes at once and it has 2" in failure["message"]
    assert "asks for 3 nodes at once and it has 2" in run.explain("wide[0]")
    assert globus.service.log.of("submit") == []


@pytest.mark.very_slow
def test_the_pilot_engine_runs_a_thousand_jobs(
    endpoint: Endpoint, store: str, threads: Any
) -> None:
    executor = site(endpoint.id, user_endpoint_config={"engine": "htex"})
    there = two_stages(1000).run(executor=executor, store=store).result()
    assert there == two_stages(1000).run(executor=threads, store=store).result()


@pytest.mark.very_slow
def test_the_pilot_engine_survives_the_death_of_workers(endpoint: Endpoint, store: str) -> None:
    """Its engine looks for dead workers every 30 s, and tries everything twice."""
    deadly = pf.task(payloads.die).options(retries=0)

    @pf.workflow
    def flow() -> Any:
        return deadly(pf.items(["fine", "fine", "die", "fine"]))

    executor = site(endpoint.id, user_endpoint_config={"engine": "htex"})
    run = flow().run(executor=executor, store=store)
    assert [job["index"] for job in run.jobs(status="failed")] == [2]


@pytest.mark.slow
@pytest.mark.skipif(bool(mpi_missing()), reason=mpi_missing())
def test_ranks_of_commands_on_a_block_of_two_nodes(endpoint: Endpoint, store: str) -> None:
    ranks = pf.command("echo rank $PMI_RANK of $PMI_SIZE on $MPI_LOCALNRANKS here")
    one = ranks.options(name="one", ranks_per_node=2)
    both = ranks.options(name="both", nodes=2, ranks_per_node=1)
    three = ranks.options(name="three", nodes=3)

    @pf.workflow
    def flow() -> Any:
        return one(pf.items([1])), both(pf.items([1])), three(pf.items([1]))

    block = Site("block", queue=endpoint.id, nodes=2, cores=2)
    config = {"engine": "mpi", "nodes": 2}
    executor = pf.executors.GlobusCompute(block, user_endpoint_config=config)
    run = flow().run(executor=executor, store=store)
    assert [job["task"] for job in run.jobs(status="failed")] == ["three"]
    assert "asks for 3 nodes at once and it has 2" in run.explain("three[0]")
    said = {name: sorted(run.logs(f"{name}[0]").splitlines()) for name in ("one", "both")}
    assert said["one"] == ["rank 0 of 2 on 2 here", "rank 1 of 2 on 2 here"]
    assert said["both"] == ["rank 0 of 2 on 1 here", "rank 1 of 2 on 1 here"]
