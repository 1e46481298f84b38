"""What the stand-in refuses, as Kubernetes does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

#: Version of Kubernetes whose schemas are used.
VERSION = "1.37"
_DNS = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_KEY = re.compile(r"([a-z0-9][-a-z0-9.]{0,252}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGT", 1)}


class Invalid(ValueError):
    """An object that Kubernetes would not take."""


def quantity(text: str) -> float:
    """Return a quantity such as ``500m`` or ``10Gi`` as a number."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    if match is None or match[2] not in _UNITS:
        raise Invalid(f"{text!r} is no quantity")
    return float(match[1]) * _UNITS[match[2]]


def check(body: Mapping[str, Any]) -> None:
    """Check an object by the schema, and by rules that are not in it.

    Raises
    ------
    Invalid
    """
    import kubernetes_validate
    from kubernetes_validate import ValidationError

    try:
        kubernetes_validate.validate(dict(body), VERSION, strict=True)
    except ValidationError as error:
        place = ".".join(map(str, error.path))
        raise Invalid(f"{place}: {error.message}") from error
    for problem in _problems(body):
        raise Invalid(problem)


def _problems(body: Mapping[str, Any]) -> Iterator[str]:
    yield from _of_metadata(body["metadata"])
    if body["kind"] == "Job":
        template = body["spec"]["template"]
        yield from _of_metadata({"name": body["metadata"]["name"], **template["metadata"]})
        yield from _of_pod(template["spec"])


def _of_metadata(metadata: Mapping[str, Any]) -> Iterator[str]:
    if not _DNS.fullmatch(metadata["name"]):
        yield f"metadata.name: {metadata['name']!r} is no DNS label"
    for key, value in metadata.get("labels", {}).items():
        if not (_KEY.fullmatch(key) and _VALUE.fullmatch(value)):
            yield f"metadata.labels: {key}={value!r} is not valid"


def _of_pod(spec: Mapping[str, Any]) -> Iterator[str]:
    if spec.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "spec.template.spec.restartPolicy: supported values: OnFailure, Never"
    volumes = {volume["name"] for volume in spec.get("volumes", ())}
    for container in spec["containers"]:
        mounts = {mount["name"] for mount in container.get("volumeMounts", ())}
        if not mounts <= volumes:
            yield f"volumeMounts: {', '.join(sorted(mounts - volumes))}: not found"
        yield from _of_resources(container.get("resources", {}))


def _of_resources(resources: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    limits = resources.get("limits", {})
    for name, wanted in resources.get("requests", {}).items():
        if name in limits and quantity(wanted) > quantity(limits[name]):
            yield f"resources.requests: {name} must be less than or equal to the limit"
