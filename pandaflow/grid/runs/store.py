"""A server as a store of runs: leave them there, look at them, steer them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import WorkflowSpec
from pandaflow.grid.auth.credentials import Credentials
from pandaflow.grid.calls import API, Calls, sent, word
from pandaflow.grid.runs.codec import parse_state
from pandaflow.grid.runs.errors import store_errors
from pandaflow.grid.runs.messages import Driven, Left, Wish, Wished
from pandaflow.grid.runs.reader import ServerReader
from pandaflow.grid.runs.results import ServedResults, leave_blob
from pandaflow.ports import RunState
from pandaflow.store.spec import dump_workflow

#: Seconds that a server may take to write a large run down.
_LEAVE_S = 120.0


class ServerStore:
    """A :class:`pandaflow.store.port.RunStore` over HTTP; nothing is driven through it.

    Parameters
    ----------
    url : str
        Of the server: ``https://``, or ``http://`` on this machine.
    vo : str, optional
        Virtual organisation to act for; default: the only one, or ``PANDAFLOW_VO``.
    ca : str or Path, optional
        Certificates that the server's is checked with, PEM; default: the system's.
    credentials : Credentials, optional
        Default: what ``pandaflow login`` or the environment has for this server.

    Raises
    ------
    StoreError
        The address is no good, or the certificates are.
    """

    def __init__(
        self,
        url: str,
        vo: str | None = None,
        ca: str | Path | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._again = (url, vo, ca)
        with store_errors():
            self._calls = Calls(url, credentials, ca, vo=vo or "")

    def __reduce__(self) -> tuple[Any, ...]:
        return (ServerStore, self._again)

    def __repr__(self) -> str:
        return f"ServerStore({self.url!r})"

    @property
    def url(self) -> str:
        """The server's address."""
        return self._calls.url

    # --- looking --------------------------------------------------------------------------

    def reader(self) -> ServerReader:
        """Return read access."""
        return ServerReader(self._calls)

    def state(self, run_id: str) -> RunState:
        """Return a run as last committed.

        Raises
        ------
        RunNotFound, StoreUnavailable, StoreError
        """
        with store_errors(), self._calls.stream(f"/runs/{word(run_id)}/state") as answer:
            return parse_state(answer.iter_lines(), f"{self.url}{API}/runs/{run_id}/files")

    def driven(self, run_id: str) -> bool:
        """Tell whether a runner drives the run."""
        with store_errors():
            path = f"/runs/{word(run_id)}/driven"
            return self._calls.message(Driven, "GET", path).driven

    def results(self, run_id: str) -> ServedResults:
        """Return the results of a run, as seen through the server."""
        return ServedResults(self._calls, run_id)

    def live_log(self, run_id: str, bundle: int) -> str:
        """Return the end of the log of a bundle that a pilot runs; empty if nobody can tell."""
        with store_errors():
            path = f"/runs/{word(run_id)}/bundles/{bundle}/tail"
            return self._calls.call("GET", path, params={"wait": 5}, wait=5).text

    # --- leaving and steering ---------------------------------------------------------------

    def leave(self, spec: WorkflowSpec, blobs: Mapping[str, bytes], run_id: str) -> None:
        """Leave a run with the server: first what it brings along, then the workflow itself.

        Raises
        ------
        WorkflowError
            The server does not take it, and why.
        StoreUnavailable, StoreError, Forbidden
        """
        if spec.steerers:
            raise WorkflowError(steered(spec))
        body = sent(Left(spec=dump_workflow(spec)))
        run = word(run_id)
        with store_errors():
            for name, data in blobs.items():
                leave_blob(self._calls, run, name, data)
            self._calls.call("PUT", f"/runs/{run}", wait=_LEAVE_S, **body)

    def request(self, run_id: str, kind: str, body: Mapping[str, Any]) -> int:
        """Leave a wish for whoever drives the run; return its id."""
        if kind == "grow":
            raise WorkflowError("a run that was left with a server does not grow from outside")
        # The server knows better by whom it is.
        plain = {name: value for name, value in body.items() if name != "by"}
        try:
            wish = Wish.model_validate({"kind": kind, **plain})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "/".join(map(str, first["loc"][1:]))
            raise WorkflowError(f"{kind}: {place}: {first['msg']}") from None
        with store_errors():
            path = f"/runs/{word(run_id)}/requests"
            return self._calls.message(Wished, "POST", path, **sent(wish)).id

    def close(self) -> None:
        """Close connections. May be called twice."""
        self._calls.close()


def steered(spec: WorkflowSpec) -> str:
    """Say why a workflow cannot be left with a server, and what to do."""
    names = ", ".join(steerer.name for steerer in spec.steerers)
    return (
        f"{names}: a study drives its run where it was started, so it cannot be left with a "
        "server: use executor=pf.executors.Grid(...)"
    )
