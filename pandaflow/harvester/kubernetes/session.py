"""Questions to a cluster's API server, by Kubernetes' own client.

The client is used for what is hard: kubeconfigs, their plug-ins, accounts of pods, TLS. Bodies
stay what they are in JSON; its classes for them would drop fields that it does not know.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import SiteError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from pandaflow.harvester.kubernetes.settings import KubernetesSettings

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PAGE = 500
_APPLY = "application/apply-patch+yaml"


class Refused(SiteError):
    """The cluster has answered with an error.

    Attributes
    ----------
    status : int
        Of HTTP.
    """

    def __init__(self, message: str, status: int, *, transient: bool) -> None:
        super().__init__(message, transient=transient)
        self.status = status


class Session:
    """Calls to one namespace of a cluster.

    Parameters
    ----------
    client : kubernetes.client.ApiClient
    namespace : str
    timeout : float
        Seconds for each answer.
    """

    def __init__(self, client: ApiClient, namespace: str, timeout: float) -> None:
        self._client, self.namespace, self._timeout = client, namespace, timeout

    def create(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        return self._call("POST", self._path(kind), body=body)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object."""
        return self._call("GET", self._path(kind, name))

    def apply(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object or make it be as said, in one request."""
        query = [("fieldManager", "pandaflow-harvester"), ("force", "true")]
        name = body["metadata"]["name"]
        return self._call("PATCH", self._path(kind, name), query, body, _APPLY)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object after what belongs to it; that it is not there is no error."""
        query = [("propagationPolicy", "Foreground")]
        try:
            self._call("DELETE", self._path(kind, name), query)
        except Refused as error:
            if error.status != 404:
                raise

    def every(self, kind: str, **selectors: str) -> Iterator[dict[str, Any]]:
        """Yield objects, page by page; selectors are ``labelSelector`` and ``fieldSelector``."""
        following = ""
        while True:
            query = [*selectors.items(), ("limit", str(_PAGE))]
            query += [("continue", following)] if following else []
            page = self._call("GET", self._path(kind), query)
            items = page.get("items")
            if not isinstance(items, list):
                raise SiteError("the cluster answers with no list", transient=True)
            yield from items
            following = (page.get("metadata") or {}).get("continue") or ""
            if not following:
                return

    def _path(self, kind: str, name: str = "") -> str:
        group = "apis/batch/v1" if kind == "jobs" else "api/v1"
        path = f"/{group}/namespaces/{self.namespace}/{kind}"
        return f"{path}/{name}" if name else path

    def _call(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> dict[str, Any]:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json", "Content-Type": content}
        try:
            request = self._client.param_serialize(
                method,
                path,
                query_params=query or [],
                header_params=headers,
                body=None if body is None else dict(body),
                auth_settings=["BearerToken"],
            )
            answer = self._client.call_api(*request, _request_timeout=self._timeout)
            return _understood(answer.status, answer.read(), method, path)
        except (ApiException, HTTPError, OSError) as error:
            raise SiteError(_silent(error), transient=True) from error


def _silent(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"the Kubernetes cluster does not answer: {text[:300]}"


def _understood(status: int, content: bytes, method: str, path: str) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if status >= 400:
        raise _refusal(status, body, content, method, path)
    if not isinstance(body, dict):
        text = f"the cluster's answer to {method} {path} is no JSON object: is it Kubernetes?"
        raise SiteError(text, transient=True)
    return body


def _refusal(status: int, body: object, content: bytes, method: str, path: str) -> Refused:
    told = body.get("message") if isinstance(body, dict) else None
    text = str(told or content[:300].decode("utf-8", "replace") or f"status {status}")
    full = status == 403 and "exceeded quota" in text
    remedy = {
        401: ": renew the credentials of the kubeconfig",
        403: "" if full else ": the harvester's account needs a Role, see the Helm chart's",
        404: ": is the namespace there?",
    }.get(status, "")
    message = f"Kubernetes refuses {method} {path}: {text}{remedy}"
    return Refused(
        message, status, transient=full or status in (408, 409, 410, 429) or status >= 500
    )


def connect(settings: KubernetesSettings) -> Session:
    """Return a session with the cluster of the settings; asks it nothing yet.

    Raises
    ------
    SiteError
        The client is not installed, or the kubeconfig is no good.
    """
    if find_spec("kubernetes") is None:
        raise SiteError("pilots on Kubernetes need more: pip install 'pandaflow[kubernetes]'")
    from kubernetes.config import ConfigException

    try:
        client, namespace = _configured(settings)
    except (ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        where = settings.kubeconfig or "a kubeconfig, or of an account in the cluster"
        raise SiteError(f"no access to Kubernetes by {where}: {error}") from error
    return Session(client, settings.namespace or namespace or "default", settings.timeout)


def _configured(settings: KubernetesSettings) -> tuple[ApiClient, str]:
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.config import load_incluster_config

    if settings.kubeconfig or settings.context or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return _from_file(settings)
    configuration = Configuration()
    load_incluster_config(client_configuration=configuration)
    return ApiClient(configuration), (_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()


def _from_file(settings: KubernetesSettings) -> tuple[ApiClient, str]:
    from kubernetes.config import list_kube_config_contexts, new_client_from_config

    file = None if settings.kubeconfig is None else str(settings.kubeconfig.expanduser())
    contexts, active = list_kube_config_contexts(file)
    chosen = active
    if settings.context:
        chosen = next((one for one in contexts if one["name"] == settings.context), active)
    client = new_client_from_config(file, settings.context or None, persist_config=False)
    return client, str((chosen or {}).get("context", {}).get("namespace") or "")
