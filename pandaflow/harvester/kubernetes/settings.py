"""What ``harvester.toml`` says of a queue whose pilots are Kubernetes Jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from pandaflow.core.errors import SiteError
from pandaflow.harvester.settings import Bytes, Line, Seconds
from pandaflow.harvester.submitter import Order, SubmitterSettings

if TYPE_CHECKING:
    from pandaflow.harvester.kubernetes.submitter import Kubernetes

_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?([EPTGMk]i?|Ki)?$"


class KubernetesSettings(SubmitterSettings):
    """Pilots as Jobs in one namespace of a Kubernetes cluster.

    Attributes
    ----------
    image : str
        Has the pilot; see ``deploy/Dockerfile``.
    namespace : str
        Empty: that of the kubeconfig's context, or of the harvester's own pod.
    kubeconfig : Path or None
        None: the account of the pod that the harvester runs in, else the kubeconfig that
        ``kubectl`` uses.
    context : str
        Of the kubeconfig; empty: its current one.
    template : Path or None
        YAML with a pod's ``metadata`` and ``spec``: what pilots get besides.
    secret : str
        A Secret of the namespace with the key ``token``, and ``ca.pem`` if need be. Empty: the
        harvester makes one from the token file of its own, and renews it.
    service_account : str
        Of the pilots; none of its tokens is mounted.
    labels, node_selector : dict of str to str
        Labels of Jobs and pods, for example Kueue's queue; labels that nodes must have.
    image_pull_policy : str
    image_pull_secrets : tuple of str
    priority_class : str
    disk : str
        Quantity for the work directory; empty: no limit.
    pilot_memory : int
        Bytes for the pilot itself, on top of what its payloads may have.
    cpu_limit : bool
        Limit to the cores asked for; else they are only asked for.
    gpu : str
        Resource that gpus are.
    user : int
        Numeric user and group of pilots.
    grace : float
        Seconds that a pilot is given to end.
    keep : float
        Seconds that the cluster keeps a Job that has ended.
    timeout : float
        Seconds for an answer of the cluster.
    """

    image: Line
    namespace: str = Field(default="", pattern=f"^$|{_LABEL}")
    kubeconfig: Path | None = None
    context: str = ""
    template: Path | None = None
    secret: str = Field(default="", pattern=f"^$|{_NAME}")
    service_account: str = Field(default="", pattern=f"^$|{_NAME}")
    labels: dict[str, str] = Field(default_factory=dict)
    node_selector: dict[str, str] = Field(default_factory=dict)
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    image_pull_secrets: tuple[str, ...] = ()
    priority_class: str = ""
    disk: str = Field(default="10Gi", pattern=f"^$|{_QUANTITY}")
    pilot_memory: Bytes = 128 * 2**20
    cpu_limit: bool = True
    gpu: str = Field(default="nvidia.com/gpu", min_length=1)
    user: int = Field(default=10_001, ge=1)
    grace: Seconds = 60.0
    keep: Seconds = 600.0
    timeout: Seconds = 30.0

    @field_validator("labels")
    @classmethod
    def _ours_stay(cls, labels: dict[str, str]) -> dict[str, str]:
        from pandaflow.harvester.kubernetes.manifest import LABEL

        if LABEL in labels:
            raise ValueError(f"{LABEL} is the harvester's own label")
        return labels

    def pod_template(self) -> dict[str, Any]:
        """Return the template's contents; an empty one if there is no file.

        Raises
        ------
        SiteError
            It cannot be read, or is no pod's metadata and spec.
        """
        if self.template is None:
            return {}
        # PyYAML comes with the client of Kubernetes (and with Dask).
        import yaml

        try:
            found = yaml.safe_load(self.template.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SiteError(f"{self.template} cannot be read as YAML: {error}") from error
        return _checked(found, self.template)

    def open(self, label: str, folder: Path) -> Kubernetes:
        """Return the submitter.

        Raises
        ------
        SiteError
            There is no client of Kubernetes, no access to a cluster, or a bad template.
        """
        from pandaflow.harvester.kubernetes.session import connect
        from pandaflow.harvester.kubernetes.submitter import Kubernetes

        self.pod_template()
        return Kubernetes(self, label, folder, connect(self))

    def preview(self, order: Order, name: str) -> str:
        """Return the Job as YAML."""
        import yaml

        from pandaflow.harvester.kubernetes.manifest import job

        made = job(order, name, self, self.pod_template())
        text: str = yaml.safe_dump(made, sort_keys=False, width=100)
        return text


def _checked(found: object, path: Path) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise SiteError(f"{path} is no mapping: give the metadata and spec of a pod")
    # A whole Pod or PodTemplate says what it is.
    extra = set(found) - {"metadata", "spec", "apiVersion", "kind"}
    if extra:
        raise SiteError(f"{path}: {', '.join(map(str, sorted(extra)))} is no part of a pod")
    parts = {key: found.get(key) or {} for key in ("metadata", "spec")}
    for key, part in parts.items():
        if not isinstance(part, dict):
            raise SiteError(f"{path}: {key} is no mapping")
    _check_lists(parts["spec"], path)
    return parts


def _check_lists(spec: dict[str, Any], path: Path) -> None:
    for key in ("containers", "initContainers", "volumes"):
        items = spec.get(key) or []
        if not isinstance(items, list) or not all(
            isinstance(item, dict) and isinstance(item.get("name"), str) for item in items
        ):
            raise SiteError(f"{path}: spec.{key} is no list of mappings with a name each")
