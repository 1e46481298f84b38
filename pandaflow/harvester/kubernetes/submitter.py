"""Pilots as Jobs of Kubernetes."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import SiteError
from pandaflow.harvester.carried import Carried
from pandaflow.harvester.kubernetes.manifest import LABEL, job, secret
from pandaflow.harvester.kubernetes.reading import by_job, name_of, pilot_of, state_of
from pandaflow.harvester.kubernetes.session import Refused, Session
from pandaflow.harvester.submitter import UNKNOWN, Order, PilotState

if TYPE_CHECKING:
    from pandaflow.harvester.kubernetes.settings import KubernetesSettings

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Kubernetes:
    """A submitter (:class:`~pandaflow.harvester.submitter.Submitter`) of one Job for each pilot.

    The id of a pilot is the name of its Job, which is the pilot's own: a Job cannot be made twice.

    Parameters
    ----------
    settings : KubernetesSettings
    label : str
    folder : Path
        Keeps where the token is.
    session : Session
    """

    def __init__(
        self, settings: KubernetesSettings, label: str, folder: Path, session: Session
    ) -> None:
        self._settings, self._label, self._session = settings, label, session
        self._carried = Carried(folder)

    def submit(self, order: Order, names: Sequence[str]) -> Mapping[str, str]:
        """Create Jobs, after the Secret that they mount."""
        for name in names:
            if not _NAME.fullmatch(name):
                raise SiteError(f"{name!r} cannot be the name of a Job: give a shorter label")
        template = self._settings.pod_template()
        self._bring(self._carried.read(order))
        begun: dict[str, str] = {}
        for name in names:
            try:
                self._create(job(order, name, self._settings, template))
            except SiteError as error:
                if not begun:
                    raise
                _LOG.warning("only %d of %d pilots begun: %s", len(begun), len(names), error)
                break
            begun[name] = name
        return begun

    def states(self, ids: Collection[str]) -> Mapping[str, PilotState]:
        """Ask for the Jobs and the pods of the label, and say of each id what became of it."""
        self._renew()
        jobs = {name_of(one): one for one in self._ours("jobs")}
        pods = by_job(self._ours("pods"))
        found = {name: state_of(one, pods.get(name, ())) for name, one in jobs.items()}
        for name, reason in self._held_up(found, pods).items():
            found[name] = PilotState(phase="waiting", reason=reason)
        return {one: found.get(one, UNKNOWN) for one in ids}

    def cancel(self, ids: Collection[str]) -> None:
        """Delete Jobs; each is seen until its pod has ended."""
        for name in ids:
            self._session.delete("jobs", name)

    def found(self) -> Mapping[str, str]:
        """Return the pilots whose Jobs have not ended."""
        pods = by_job(self._ours("pods"))
        return {
            name_of(one): pilot_of(one)
            for one in self._ours("jobs")
            if state_of(one, pods.get(name_of(one), ())).phase != "gone"
        }

    def _ours(self, kind: str) -> list[dict[str, Any]]:
        return list(self._session.every(kind, labelSelector=f"{LABEL}={self._label}"))

    def _create(self, manifest: Mapping[str, Any]) -> None:
        try:
            self._session.create("jobs", manifest)
        except Refused as error:
            if error.status != 409:
                raise
            self._check_ours(name_of(manifest))

    def _check_ours(self, name: str) -> None:
        """Take a Job that is there already for the one that was asked for, if it is ours.

        The answer to an earlier request may have been lost.
        """
        labels = self._session.get("jobs", name)["metadata"].get("labels") or {}
        if labels.get(LABEL) != self._label:
            raise SiteError(f"the namespace has a Job {name} of somebody else: give another label")

    def _bring(self, files: Mapping[str, bytes]) -> None:
        if files and not self._settings.secret:
            self._session.apply("secrets", secret(self._label, files))
            self._carried.brought(files)

    def _renew(self) -> None:
        """Replace the Secret when the token was; pods see the new one within a minute."""
        if self._settings.secret:
            return
        try:
            self._bring(self._carried.changed())
        except SiteError as error:
            _LOG.warning("the pilots' token is not renewed: %s", error)

    def _held_up(
        self, states: Mapping[str, PilotState], pods: Mapping[str, object]
    ) -> dict[str, str]:
        """Return why Jobs have no pods: the cluster says it in events alone."""
        bare = {n for n, state in states.items() if state == _BARE and n not in pods}
        if not bare:
            return {}
        wanted = "involvedObject.kind=Job,reason=FailedCreate"
        try:
            events = list(self._session.every("events", fieldSelector=wanted))
        except Refused as error:
            _LOG.debug("no events: %s", error)
            return {}
        said = ((e.get("involvedObject", {}).get("name"), e.get("message")) for e in events)
        return {str(name): str(text)[:500] for name, text in said if name in bare and text}


_BARE = PilotState(phase="waiting")
