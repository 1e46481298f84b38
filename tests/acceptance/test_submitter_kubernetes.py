"""Pilots as Jobs: on the stand-in, whose pods run; on a real control plane where there is one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.errors import SiteError
from pandaflow.grid.messages import Bundle, CommandJob, Needs
from pandaflow.grid.places import QueueBody
from pandaflow.harvester.kubernetes import KubernetesSettings
from pandaflow.harvester.kubernetes.submitter import Kubernetes
from pandaflow.harvester.submitter import Order, Shape
from pandaflow.testing.grid import GridServer, random_name
from pandaflow.testing.kubernetes import (
    Cluster,
    ClusterMissing,
    ControlPlane,
    ControlPlaneMissing,
)
from pandaflow.testing.kubernetes.cluster import PROGRAM
from pandaflow.testing.kubernetes.objects import Failure
from pandaflow.testing.submitters import LASTING, Make, SubmitterTests, pilot_program

Open = Callable[..., Kubernetes]


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    try:
        made = Cluster(cores=4)
    except ClusterMissing as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """Tests may make it fail; nothing runs in it afterwards."""
    yield shared
    shared.fail(None)
    for kind in ("jobs", "secrets"):
        for thing in shared.objects.page(kind, {})["items"]:
            shared.objects.delete(kind, thing["metadata"]["name"])
    until(lambda: not shared.objects.page("pods", {})["items"])


@pytest.fixture
def opened(cluster: Cluster, tmp_path: Path) -> Open:
    def open_(label: str = "pf-own", **more: Any) -> Kubernetes:
        fields = cluster.settings(**{"grace": 1.0, **more})
        return KubernetesSettings(**fields).open(label, tmp_path / label)

    return open_


class TestKubernetes(SubmitterTests):
    shares_files = False
    unknown = "pf-never-was"

    @pytest.fixture
    def make(self, opened: Open) -> Make:
        return opened

    @pytest.fixture
    def silent(self, opened: Open, tmp_path: Path, cluster: Cluster) -> Kubernetes:
        nowhere = json.loads(cluster.kubeconfig.read_text())
        nowhere["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:1"
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps(nowhere))
        return opened("pf-silent", kubeconfig=path, timeout=2.0)


def order(tmp_path: Path, script: str = LASTING, **more: Any) -> Order:
    token = tmp_path / "token"
    token.write_text("first")
    found = Order(
        server="http://127.0.0.1:1",
        queue="q",
        label="pf-own",
        program=pilot_program(script),
        token_file=str(token),
    )
    return replace(found, **more)


def until(holds: Callable[[], Any], patience: float = 60.0) -> Any:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came to hold")


def phase(submitter: Kubernetes, name: str) -> str:
    return submitter.states([name])[name].phase


def test_a_real_pilot_does_a_job_in_a_pod(opened: Open, cluster: Cluster) -> None:
    """Not as root, its root file system read-only, its token in a mounted Secret."""
    with GridServer() as server, server.client() as client:
        client.put_queue("pods", QueueBody())
        client.open_run("run")
        line = "(id -u; pwd; ! touch /usr/x; ! touch /x) >/tmp/told"
        bundle = Bundle(
            bundle=0, task="t", jobs=(0,), kind="command", needs=Needs(queue="pods"),
            commands=(CommandJob(position=0, line=line, shell=True),),
        )  # fmt: skip
        assert client.submit("run", [bundle]) == {}
        submitter = opened()
        submitter.submit(
            Order(
                server=server.url, queue="pods", label="pf-own", program=PROGRAM, idle=1.0,
                shape=Shape(walltime=300.0, memory=2**30),
            ),
            ["pf-own-1"],
        )  # fmt: skip
        until(lambda: phase(submitter, "pf-own-1") == "gone")
        assert submitter.states(["pf-own-1"])["pf-own-1"].code == 0
        (outcome,) = [o for o in client.outcomes("run").outcomes if o.kind == "ended"]
        assert outcome.bundle == 0
    (told,) = cluster.folder.glob("pods/pf-own-1-*/volumes/tmp/told")
    user, place = told.read_text().split()
    assert user == "10001" and place.startswith("/work/")


def test_a_pilot_gives_its_jobs_back_before_it_is_killed(opened: Open, cluster: Cluster) -> None:
    with GridServer() as server, server.client() as client:
        client.put_queue("pods", QueueBody())
        client.open_run("run")
        bundle = Bundle(
            bundle=0, task="t", jobs=(0,), kind="command", needs=Needs(queue="pods"),
            commands=(CommandJob(position=0, line=LASTING, shell=True),),
        )  # fmt: skip
        assert client.submit("run", [bundle]) == {}
        submitter = opened(grace=30.0)
        wanted = Order(
            server=server.url, queue="pods", label="pf-own", program=PROGRAM,
            options=("--grace", "1s"),
        )  # fmt: skip
        submitter.submit(wanted, ["pf-own-1"])
        until(lambda: any(o.kind == "started" for o in client.outcomes("run").outcomes))
        submitter.cancel(["pf-own-1"])
        (lost,) = until(
            lambda: [o for o in client.outcomes("run", wait=1.0).outcomes if o.kind == "lost"]
        )
        assert lost.bundle == 0
        until(lambda: phase(submitter, "pf-own-1") == "gone")


def test_what_a_pilot_is_told_in_a_pod(opened: Open, cluster: Cluster, tmp_path: Path) -> None:
    script = 'printf "%s|" "$WORD" "$@"; cat "$8"'
    odd = 'it\'s "$(HOME)" $HOME `x`'
    submitter = opened()
    submitter.submit(order(tmp_path, f"{script}; exit 3", env={"WORD": odd}), ["pf-own-1"])
    until(lambda: phase(submitter, "pf-own-1") == "gone")
    word, *words = cluster.log("pf-own-1").split("|")
    assert word == odd
    assert words[-1] == "first"
    assert words[:4] == ["--server", "http://127.0.0.1:1", "--queue", "q"]
    state = submitter.states(["pf-own-1"])["pf-own-1"]
    assert state.code == 3 and "first" in state.reason, "what a pilot said last explains its end"


def test_the_token_is_in_no_job(opened: Open, cluster: Cluster, tmp_path: Path) -> None:
    secret, wanted = random_name("secret"), order(tmp_path)
    (tmp_path / "token").write_text(secret)
    submitter = opened()
    submitter.submit(wanted, ["pf-own-1"])
    for kind in ("jobs", "pods"):
        assert secret not in json.dumps(cluster.objects.page(kind, {}))


def test_a_token_that_is_renewed_here_reaches_pods_that_run(
    opened: Open, cluster: Cluster, tmp_path: Path
) -> None:
    submitter = opened()
    script = 'while ! grep -q second "$8"; do sleep 0.1; done'
    submitter.submit(order(tmp_path, script), ["pf-own-1"])
    until(lambda: phase(submitter, "pf-own-1") == "running")
    (tmp_path / "token").write_text("second")
    until(lambda: phase(submitter, "pf-own-1") == "gone")
    assert submitter.states(["pf-own-1"])["pf-own-1"].code == 0


def test_a_secret_of_the_site_s_is_left_alone(
    opened: Open, cluster: Cluster, tmp_path: Path
) -> None:
    opened(secret="theirs").submit(order(tmp_path), ["pf-own-1"])
    assert (
        cluster.objects.page("secrets", {"labelSelector": "pandaflow/label=pf-own"})["items"] == []
    )


def test_a_name_is_begun_once(opened: Open, cluster: Cluster, tmp_path: Path) -> None:
    submitter = opened()
    for _ in range(2):
        assert submitter.submit(order(tmp_path), ["pf-own-1"]) == {"pf-own-1": "pf-own-1"}
    assert len(submitter.found()) == 1
    other = opened("pf-other")
    with pytest.raises(SiteError, match="somebody else"):
        other.submit(order(tmp_path, label="pf-other"), ["pf-own-1"])


def test_why_pods_wait_and_how_they_ended(opened: Open, cluster: Cluster, tmp_path: Path) -> None:
    submitter = opened()
    submitter.submit(order(tmp_path, shape=Shape(cores=64)), ["pf-own-large"])
    opened(image="no/such:image").submit(order(tmp_path), ["pf-own-image"])
    submitter.submit(order(tmp_path), ["pf-own-oom", "pf-own-evicted"])

    def reason(name: str) -> str:
        return submitter.states([f"pf-own-{name}"])[f"pf-own-{name}"].reason

    until(lambda: "Unschedulable" in reason("large"))
    until(lambda: "ImagePullBackOff" in reason("image"))
    for name, why in (("oom", "OOMKilled"), ("evicted", "Evicted")):
        until(lambda name=name: phase(submitter, f"pf-own-{name}") == "running")
        cluster.strike(f"pf-own-{name}", why)
        until(lambda name=name, why=why: why in reason(name))
        assert phase(submitter, f"pf-own-{name}") == "gone"
    assert set(submitter.found()) == {"pf-own-large", "pf-own-image"}


def test_a_pilot_beyond_its_walltime_is_ended(opened: Open, tmp_path: Path) -> None:
    template = tmp_path / "pod.yaml"
    template.write_text("spec: {activeDeadlineSeconds: 1}")
    submitter = opened(template=template)
    submitter.submit(order(tmp_path), ["pf-own-1"])
    until(lambda: phase(submitter, "pf-own-1") == "gone")
    assert "DeadlineExceeded" in submitter.states(["pf-own-1"])["pf-own-1"].reason


def test_more_pilots_than_a_page_holds(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pandaflow.harvester.kubernetes.session._PAGE", 2)
    submitter = opened()
    names = [f"pf-own-{n}" for n in range(5)]
    # None of them can run: they wait.
    submitter.submit(order(tmp_path, shape=Shape(cores=64)), names)
    assert sorted(submitter.found()) == names
    assert {state.phase for state in submitter.states(names).values()} == {"waiting"}


@pytest.mark.parametrize(
    ("answer", "transient", "told"),
    [
        (Failure(500, "etcd has no leader"), True, "etcd has no leader"),
        (Failure(429, "too many"), True, "too many"),
        (Failure(403, 'pods is forbidden: exceeded quota: "small"', "Forbidden"), True, "quota"),
        (Failure(403, "jobs is forbidden", "Forbidden"), False, "Role"),
        (Failure(401, "Unauthorized"), False, "kubeconfig"),
        (b"<html>a proxy</html>", True, "no JSON object"),
        (b"[]", True, "no JSON object"),
        (b'{"items": 3}', True, "no list"),
        (b'{"items": [{}]}', True, "without names"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_an_error(
    opened: Open, cluster: Cluster, answer: Any, transient: bool, told: str
) -> None:
    submitter = opened()
    cluster.fail(lambda method, path: answer)
    with pytest.raises(SiteError, match=told) as caught:
        submitter.found()
    assert caught.value.transient is transient


def test_what_was_begun_before_a_failure_is_told(
    opened: Open, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.fail(
        lambda method, path: (
            Failure(500, "no leader")
            if method == "POST" and len(cluster.objects.all("jobs")) == 2
            else None
        )
    )
    begun = opened().submit(order(tmp_path), [f"pf-own-{n}" for n in range(4)])
    assert sorted(begun) == ["pf-own-0", "pf-own-1"]


def test_wrong_access_is_said(opened: Open, cluster: Cluster, tmp_path: Path) -> None:
    said = json.loads(cluster.kubeconfig.read_text())
    said["users"][0]["user"]["token"] = "old"
    stale = tmp_path / "kubeconfig"
    stale.write_text(json.dumps(said))
    with pytest.raises(SiteError, match="renew the credentials"):
        opened(kubeconfig=stale).found()
    with pytest.raises(SiteError, match="no access to Kubernetes"):
        opened(kubeconfig=tmp_path / "absent")
    with pytest.raises(SiteError, match="is the namespace there"):
        opened(namespace="elsewhere").found()


# --- a real control plane ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    try:
        made = ControlPlane()
    except ControlPlaneMissing as error:
        pytest.skip(str(error))
    with made:
        yield made


#: What the chart's Role lets the harvester do.
RULES = [
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list", "delete"]},
    {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "patch"]},
]


@pytest.fixture
def limited(plane: ControlPlane, tmp_path: Path) -> Iterator[Open]:
    """Open submitters that may do what the chart's Role says, and no more."""
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{plane.namespace}"
    role, name = "rbac.authorization.k8s.io", random_name("harvester")
    plane.call("POST", f"{path}/roles", {"metadata": {"name": name}, "rules": RULES})
    reference = {"apiGroup": role, "kind": "Role", "name": name}
    who = [{"apiGroup": role, "kind": "User", "name": "harvester"}]
    bound = {"metadata": {"name": name}, "roleRef": reference, "subjects": who}
    plane.call("POST", f"{path}/rolebindings", bound)

    def open_(label: str, **more: Any) -> Kubernetes:
        fields = {"image": "pilot:1", "kubeconfig": plane.limited, **more}
        return KubernetesSettings(**fields).open(label, tmp_path / label)

    yield open_
    plane.call("DELETE", f"{path}/rolebindings/{name}")
    plane.call("DELETE", f"{path}/roles/{name}")


@pytest.mark.slow
def test_a_real_api_server_takes_it_all(plane: ControlPlane, limited: Open, tmp_path: Path) -> None:
    """The test plays the kubelet: it says what became of pods."""
    label = random_name("pf")
    submitter = limited(label)
    names = [f"{label}-{n}" for n in range(3)]
    shape = Shape(cores=2, memory=2**30, walltime=3600.0, gpus=1)
    wanted = order(tmp_path, label=label, shape=shape)
    assert sorted(submitter.submit(wanted, names)) == names
    assert sorted(submitter.submit(wanted, names[:1])) == names[:1]
    assert sorted(submitter.found()) == names

    plane.play(names[0], {"phase": "Running"})
    end = {"exitCode": 137, "reason": "OOMKilled"}
    told = {"name": "pilot", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    plane.play(
        names[1], {"phase": "Failed", "containerStatuses": [{**told, "state": {"terminated": end}}]}
    )
    why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "full"}
    plane.play(names[2], {"phase": "Pending", "conditions": [why]})
    until(lambda: phase(submitter, names[1]) == "gone")
    states = submitter.states([*names, "pf-never-was"])
    assert [states[name].phase for name in names] == ["running", "gone", "waiting"]
    assert states[names[1]].code == -9 and states[names[1]].reason == "OOMKilled"
    assert states[names[2]].reason == "Unschedulable: full"
    assert states["pf-never-was"].phase == "gone"

    (tmp_path / "token").write_text("second")
    submitter.states([])
    path = f"/api/v1/namespaces/{plane.namespace}/secrets/{label}-token"
    assert plane.call("GET", path)["data"]["token"] == "c2Vjb25k"
    submitter.cancel([*names, "pf-never-was"])
    until(lambda: not submitter.found())


@pytest.mark.slow
def test_a_real_quota_is_a_reason(plane: ControlPlane, limited: Open, tmp_path: Path) -> None:
    path = f"/api/v1/namespaces/{plane.namespace}/resourcequotas"
    label = random_name("pf")
    plane.call("POST", path, {"metadata": {"name": "none"}, "spec": {"hard": {"cpu": "1"}}})
    try:
        until(lambda: plane.call("GET", f"{path}/none")["status"].get("hard"))
        submitter = limited(label)
        submitter.submit(order(tmp_path, label=label, shape=Shape(cores=2)), [f"{label}-0"])
        until(lambda: "exceeded quota" in submitter.states([f"{label}-0"])[f"{label}-0"].reason)
        submitter.cancel([f"{label}-0"])
        until(lambda: not submitter.found())
    finally:
        plane.call("DELETE", f"{path}/none")
