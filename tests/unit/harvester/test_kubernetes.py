"""Manifests of pilots, and states read from what clusters say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pandaflow.core.errors import SiteError
from pandaflow.harvester.kubernetes import KubernetesSettings
from pandaflow.harvester.kubernetes.manifest import LABEL, job, merged, secret
from pandaflow.harvester.kubernetes.reading import by_job, pilot_of, state_of
from pandaflow.harvester.submitter import Order, PilotState, Shape

SETTINGS = KubernetesSettings(image="pilot:1")
ORDER = Order(
    server="https://pool.example.org",
    queue="CERN prod",
    label="pf-cern-0123456789",
    shape=Shape(cores=8, gpus=2, memory=16 * 2**30, walltime=3600.0),
    token_file="/secrets/token",
    env={"LANG": "C.UTF-8", "ODD": "$(HOME) and $$ stay"},
)


def made(template: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    chosen = SETTINGS.model_copy(update=settings)
    found = job(ORDER, "pf-cern-1", chosen, template or {})
    check(found)
    return found


def check(manifest: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(manifest, "1.37", strict=True)


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return found


def test_a_pilot_gets_what_its_shape_says() -> None:
    spec = pod(made())
    container = spec["containers"][0]
    assert container["resources"]["limits"] == {
        "cpu": "8",
        "memory": str(16 * 2**30 + 128 * 2**20),
        "nvidia.com/gpu": "2",
    }
    assert container["resources"]["requests"]["memory"] == str(16 * 2**30 + 128 * 2**20)
    assert spec["activeDeadlineSeconds"] > 3600
    words = container["args"]
    assert words[words.index("--memory") + 1] == str(16 * 2**30)


def test_a_pilot_is_begun_once() -> None:
    found = made()
    assert found["spec"]["backoffLimit"] == 0
    assert pod(found)["restartPolicy"] == "Never"
    assert "activeDeadlineSeconds" not in found["spec"], "it would count the time in the queue"


def test_a_pilot_has_no_rights() -> None:
    spec = pod(made())
    container = spec["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_tokens_are_mounted_and_stand_in_no_manifest() -> None:
    spec = pod(made())
    volume = next(one for one in spec["volumes"] if one["name"] == "pandaflow")
    assert volume["secret"]["secretName"] == "pf-cern-0123456789-token"
    assert "/secrets/token" not in str(spec)
    own = pod(made(secret="theirs"))
    assert "theirs" in str(own["volumes"])


def test_the_secret_holds_files_in_base64() -> None:
    found = secret("pf-cern", {"token": b"t\xffk"})
    check(found)
    assert found["data"] == {"token": "dP9r"}
    assert found["metadata"]["labels"][LABEL] == "pf-cern"


def test_the_cluster_replaces_nothing_in_words() -> None:
    env = {one["name"]: one["value"] for one in pod(made())["containers"][0]["env"]}
    assert env["ODD"] == "$$(HOME) and $$$$ stay"


def test_an_order_without_limits_asks_for_cores_alone() -> None:
    plain = Order(server="http://127.0.0.1:1", queue="q", label="pf-q")
    found = job(plain, "pf-q-1", SETTINGS.model_copy(update={"disk": ""}), {})
    check(found)
    assert pod(found)["containers"][0]["resources"] == {
        "requests": {"cpu": "1"},
        "limits": {"cpu": "1"},
    }
    assert "activeDeadlineSeconds" not in pod(found)
    assert not any("secret" in volume for volume in pod(found)["volumes"])


def test_templates_win_over_defaults_and_yield_to_the_pilot() -> None:
    template = {
        "metadata": {"labels": {LABEL: "stolen", "team": "higgs"}},
        "spec": {
            "restartPolicy": "Always",
            "tolerations": [{"key": "batch", "operator": "Exists"}],
            "securityContext": {"runAsUser": 5},
            "containers": [
                {
                    "name": "pilot",
                    "command": ["/bin/evil"],
                    "env": [{"name": "SITE", "value": "x"}],
                    "volumeMounts": [{"name": "cvmfs", "mountPath": "/cvmfs"}],
                },
            ],
            "volumes": [{"name": "cvmfs", "hostPath": {"path": "/cvmfs"}}],
        },
    }
    found = made(template)
    metadata, spec = found["spec"]["template"]["metadata"], pod(found)
    assert metadata["labels"][LABEL] == ORDER.label
    assert metadata["labels"]["team"] == "higgs"
    assert spec["restartPolicy"] == "Never"
    assert spec["securityContext"]["runAsUser"] == 5
    assert spec["securityContext"]["runAsNonRoot"] is True
    container = spec["containers"][0]
    assert container["command"] == ["pandaflow-pilot"]
    assert {one["name"] for one in container["env"]} == {"HOME", "SITE", "LANG", "ODD"}
    assert {one["name"] for one in spec["volumes"]} == {"work", "tmp", "cvmfs", "pandaflow"}
    assert spec["tolerations"] == [{"key": "batch", "operator": "Exists"}]


_NAMED = st.fixed_dictionaries(
    {"containers": st.lists(st.fixed_dictionaries({"name": st.sampled_from("abc")}), max_size=3)}
)


@given(_NAMED, _NAMED)
def test_merging_loses_no_container(one: dict[str, Any], other: dict[str, Any]) -> None:
    both = {c["name"] for c in one["containers"]} | {c["name"] for c in other["containers"]}
    assert {c["name"] for c in merged(one, other)["containers"]} == both


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "cannot be read as YAML"),
        ("- a", "no mapping"),
        ("spec: 3", "spec is no mapping"),
        ("status: {}", "status is no part of a pod"),
        ("spec: {containers: [{image: x}]}", "spec.containers"),
    ],
)
def test_bad_templates_are_refused_with_their_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    with pytest.raises(SiteError, match=told) as caught:
        SETTINGS.model_copy(update={"template": path}).pod_template()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"namespace": "Not Valid"},
        {"disk": "much"},
        {"labels": {LABEL: "mine"}},
        {"image": ""},
        {"unknown": 1},
        {"user": 0},
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KubernetesSettings(**{"image": "x", **fields})


# --- states -------------------------------------------------------------------------------


def seen(**fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": "j", "annotations": {"pandaflow/pilot": "P"}}, **fields}


def container(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "pilot", "state": state}]


FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}


@pytest.mark.parametrize(
    ("status", "pods", "state"),
    [
        ({}, [], PilotState(phase="waiting")),
        ({"active": 1}, [{"phase": "Running"}], PilotState(phase="running")),
        (
            {},
            [{"phase": "Unknown"}],
            PilotState(phase="running", reason="the node does not answer"),
        ),
        (
            {},
            [
                {
                    "phase": "Pending",
                    "conditions": [
                        {
                            "type": "PodScheduled",
                            "status": "False",
                            "reason": "Unschedulable",
                            "message": "0/3 nodes are available",
                        }
                    ],
                }
            ],
            PilotState(phase="waiting", reason="Unschedulable: 0/3 nodes are available"),
        ),
        (
            {},
            [
                {
                    "phase": "Pending",
                    "containerStatuses": container(
                        waiting={"reason": "ImagePullBackOff", "message": "no such image"}
                    ),
                }
            ],
            PilotState(phase="waiting", reason="ImagePullBackOff: no such image"),
        ),
        (
            {},
            [
                {
                    "phase": "Pending",
                    "containerStatuses": container(waiting={"reason": "ContainerCreating"}),
                }
            ],
            PilotState(phase="waiting"),
        ),
        (
            {"conditions": [{"type": "Complete", "status": "True"}]},
            [],
            PilotState(phase="gone", code=0),
        ),
        (
            FAILED,
            [
                {
                    "phase": "Failed",
                    "containerStatuses": container(
                        terminated={"exitCode": 137, "reason": "OOMKilled"}
                    ),
                }
            ],
            PilotState(phase="gone", code=-9, reason="OOMKilled"),
        ),
        (
            FAILED,
            [{"phase": "Failed", "reason": "Evicted", "message": "low on disk"}],
            PilotState(phase="gone", reason="Evicted: low on disk"),
        ),
        (
            FAILED,
            [
                {
                    "phase": "Failed",
                    "containerStatuses": container(
                        terminated={"exitCode": 3, "reason": "Error", "message": "a\nb\n"}
                    ),
                }
            ],
            PilotState(phase="gone", code=3, reason="a | b"),
        ),
        (
            {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]},
            [],
            PilotState(phase="gone", reason="DeadlineExceeded"),
        ),
        # The cluster means to fail it, but its pod still runs.
        (
            {"conditions": [{"type": "FailureTarget", "status": "True"}]},
            [{"phase": "Running"}],
            PilotState(phase="running"),
        ),
        ({}, [{"phase": "Succeeded"}], PilotState(phase="gone", code=0)),
    ],
)
def test_states(status: dict[str, Any], pods: list[dict[str, Any]], state: PilotState) -> None:
    assert state_of(seen(status=status), [seen(status=one) for one in pods]) == state


def test_a_job_that_is_deleted_runs_until_its_pod_has_ended() -> None:
    leaving = seen(status={})
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    runs = seen(status={"phase": "Running"})
    assert state_of(leaving, [runs]).phase == "running"
    assert state_of(leaving, []).phase == "gone"


def test_pods_are_told_apart_by_their_owners() -> None:
    owned = {"metadata": {"name": "p", "ownerReferences": [{"kind": "Job", "name": "j"}]}}
    assert by_job([owned, seen()]) == {"j": [owned]}
    assert pilot_of(seen()) == "P"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["conditions", "phase", "state", "terminated", "containerStatuses", "type"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_JSON, _JSON)
def test_garbage_gives_a_state_and_no_crash(status: Any, other: Any) -> None:
    found = state_of(seen(status=status), [seen(status=other)])
    assert found.phase in ("waiting", "running", "gone")
