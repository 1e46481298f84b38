"""A client of the pool's server, for executors and people: one method for each route.

Answers are parsed here; what a newer server adds to them is left alone. Errors become
:class:`SiteError` with the server's own words. No token ever goes into a message or a log.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from pandaflow.core.errors import PandaflowError, SiteError
from pandaflow.grid.auth.credentials import Credentials, find_credentials
from pandaflow.grid.auth.errors import IssuerUnavailable
from pandaflow.grid.auth.web import VO_HEADER, is_loopback, safe
from pandaflow.grid.messages import (
    BATCH,
    Acquire,
    Acquired,
    Bundle,
    Cancellation,
    Outcome,
    Outcomes,
    PilotCommand,
    PilotUpdate,
    Queue,
    QueueBody,
    Submission,
    Updated,
)

API = "/api/v1"
#: Bytes of bundles in one request; the server takes more.
REQUEST_BYTES = 16_000_000
#: Seconds before the first repetition, and the longest pause.
_PAUSES = (0.1, 5.0)
#: The server, or something before it, was not able: nothing was done or it may be done again.
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
#: It was refused before anything was done.
_UNTOUCHED = frozenset({429, 503})
_JSON = {"Content-Type": "application/json"}
#: Characters of somebody else's words that a message repeats at most.
_REPEATED = 1_000

Content = TypeVar("Content", bound=BaseModel)


class GridClient:
    """A client of one server; may be used by several threads. Use it as a context manager.

    Parameters
    ----------
    url : str
        Of the server, without ``/api``: ``https://``, or ``http://`` on this machine.
    credentials : Credentials, optional
        Default: what ``pandaflow login`` or the environment has for this server.
    ca : str or Path, optional
        Certificates that the server's is checked with, PEM; default: the system's.
    timeout : float
        Seconds for an answer, besides those for which a question may wait.
    vo : str
        Virtual organisation to act for; empty: the only one.
    retries : int
        Times that a call is repeated which may be, after pauses that grow.

    Raises
    ------
    SiteError
        The address is no good, or the certificates are.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials | None = None,
        ca: str | Path | None = None,
        timeout: float = 30.0,
        vo: str = "",
        retries: int = 4,
    ) -> None:
        try:
            self.url = safe(url.rstrip("/"))
            self._credentials = credentials or find_credentials(self.url)
        except PandaflowError as error:
            raise SiteError(str(error)) from error
        self._timeout, self._vo, self._retries = timeout, vo, retries
        self._http = httpx.Client(
            base_url=f"{self.url}{API}",
            verify=_trust(self.url, ca),
            # Proxies of the environment are for other machines.
            trust_env=not is_loopback(urlsplit(self.url).hostname or ""),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=8),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections. May be called twice."""
        self._http.close()

    # --- drivers ------------------------------------------------------------------------

    def open_run(self, run: str) -> None:
        """Make a run known to the pool."""
        self._call("PUT", f"/runs/{_word(run)}")

    def put_payload(self, run: str, digest: str, data: bytes) -> None:
        """Leave what a run's functions need, by its SHA-256."""
        media = {"Content-Type": "application/octet-stream"}
        path = f"/runs/{_word(run)}/payloads/{_word(digest)}"
        self._call("PUT", path, content=data, headers=media)

    def submit(self, run: str, bundles: Sequence[Bundle]) -> dict[int, str]:
        """Put bundles into the pool, in as many requests as are needed; may be repeated.

        Returns
        -------
        dict of int to str
            By number of the bundle: why it was refused.
        """
        refused: dict[int, str] = {}
        for body in _bodies(bundles):
            path = f"/runs/{_word(run)}/bundles"
            told = self._json("POST", path, content=body, headers=_JSON, repeat=True)
            found = told.get("refused", {}) if isinstance(told, dict) else {}
            refused.update({int(number): str(why) for number, why in found.items()})
        return refused

    def cancel(self, run: str, bundles: Sequence[int] | None = None, *, kill: bool = False) -> int:
        """Cancel bundles, None: all of the run; return how many were not over.

        Payloads are asked to end before they are killed, but with ``kill`` at once.
        """
        body = Cancellation(bundles=None if bundles is None else tuple(bundles), kill=kill)
        path = f"/runs/{_word(run)}/cancel"
        told = self._json("POST", path, **_sent(body), repeat=True)
        return int(told["cancelled"])

    def outcomes(self, run: str, after: int = 0, wait: float = 0.0, limit: int = BATCH) -> Outcomes:
        """Return what happened after outcome number `after`; acknowledges those up to it."""
        query = {"after": after, "wait": min(wait, 60.0), "limit": limit}
        path = f"/runs/{_word(run)}/outcomes"
        return self._message(Outcomes, "GET", path, params=query, wait=wait)

    def forget_run(self, run: str) -> None:
        """Cancel what a run has in the pool, and forget it; one that is not there is fine."""
        self._call("DELETE", f"/runs/{_word(run)}", missing=True)

    def runs(self) -> list[dict[str, Any]]:
        """Return the runs that have something in the pool."""
        return self._rows("/runs")

    def bundles(self, run: str) -> list[int]:
        """Return the numbers of a run's bundles in the pool that were not cancelled."""
        rows = self.bundle_rows(run, limit=1_000_000)
        return [int(row["bundle"]) for row in rows if row.get("state") != "cancelled"]

    def bundle_rows(
        self, run: str, state: str | None = None, limit: int = 1_000
    ) -> list[dict[str, Any]]:
        """Return a run's bundles in the pool with their states, by number."""
        query = {"limit": limit, **({} if state is None else {"state": state})}
        return self._rows(f"/runs/{_word(run)}/bundles", params=query)

    def log(self, run: str, bundle: int) -> str:
        """Return what there is of a bundle's log."""
        return self._call("GET", f"/runs/{_word(run)}/bundles/{bundle}/log").text

    def ask_tail(self, run: str, bundle: int) -> bool:
        """Ask for the end of a bundle's log; False: nobody runs it now."""
        told = self._json("POST", f"/runs/{_word(run)}/bundles/{bundle}/tail", repeat=True)
        return bool(told["asked"])

    def events(self, run: str, after: int = 0, seconds: float = 3_600.0) -> Iterator[Outcome]:
        """Yield outcomes of a run as they happen, without acknowledging any.

        Some may be missed which the driver has acknowledged elsewhere: their numbers show it.

        Raises
        ------
        SiteError
            Also when the stream breaks: ask again after the last number that was seen.
        """
        path, query = f"/runs/{_word(run)}/events", {"after": after, "seconds": seconds}
        timeout = httpx.Timeout(self._timeout, read=self._timeout + 30.0)
        try:
            with self._http.stream(
                "GET", path, params=query, headers=self._headers({}), timeout=timeout
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise _refusal(answer)
                kind = ""
                for line in answer.iter_lines():
                    if line.startswith("event:"):
                        kind = line[6:].strip()
                    elif line.startswith("data:") and kind != "missed":
                        yield _parse(Outcome, line[5:].encode())
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    # --- pilots -------------------------------------------------------------------------

    def acquire(self, question: Acquire) -> Acquired:
        """Ask for work; not repeated after it may have been heard: bundles would be lost."""
        return self._message(
            Acquired, "POST", "/pilot/acquire", **_sent(question), wait=question.wait
        )

    def update(self, told: PilotUpdate) -> Updated:
        """Report on bundles."""
        return self._message(Updated, "POST", "/pilot/update", **_sent(told))

    def payload(self, run: str, digest: str) -> bytes:
        """Return what a run's functions need."""
        return self._call("GET", f"/pilot/payloads/{_word(run)}/{_word(digest)}").content

    def put_log(self, id: int, lease: str, text: str) -> None:
        """Leave the log of a bundle."""
        headers = {"Content-Type": "text/plain; charset=utf-8", "X-Pandaflow-Lease": lease}
        self._call("PUT", f"/pilot/logs/{id}", content=text.encode(), headers=headers)

    # --- queues and pilots, for people ----------------------------------------------------

    def queues(self) -> list[Queue]:
        """Return all queues that one may see."""
        return [_parse(Queue, json.dumps(row).encode()) for row in self._rows("/queues")]

    def queue(self, name: str) -> Queue:
        """Return a queue."""
        return self._message(Queue, "GET", f"/queues/{_word(name)}")

    def put_queue(self, name: str, body: QueueBody) -> Queue:
        """Make a queue, or change it."""
        return self._message(Queue, "PUT", f"/queues/{_word(name)}", **_sent(body))

    def delete_queue(self, name: str) -> None:
        """Delete a queue."""
        self._call("DELETE", f"/queues/{_word(name)}")

    def close_queue(self, name: str, reason: str = "") -> Queue:
        """Give out no more bundles at a queue."""
        path = f"/queues/{_word(name)}/close"
        return self._message(Queue, "POST", path, params={"reason": reason}, repeat=True)

    def open_queue(self, name: str) -> Queue:
        """Open a queue that is closed or held."""
        return self._message(Queue, "POST", f"/queues/{_word(name)}/open", repeat=True)

    def pilots(self) -> list[dict[str, Any]]:
        """Return pilots, those heard of last first."""
        return self._rows("/pilots")

    def command_pilot(self, name: str, command: PilotCommand) -> None:
        """Tell a pilot to drain or to stop."""
        self._call("POST", f"/pilots/{_word(name)}/{command}", repeat=True)

    # --- about the server -----------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Return how the server is; an error if its database does not answer."""
        return dict(self._json("GET", "/health"))

    def whoami(self) -> dict[str, Any]:
        """Return who one is to the server."""
        return dict(self._json("GET", "/whoami"))

    def pilot_archive(self) -> bytes:
        """Return the pilot as one file."""
        return self._call("GET", "/pilot.pyz").content

    # --- calls ------------------------------------------------------------------------------

    def _message(self, kind: type[Content], method: str, path: str, **more: Any) -> Content:
        return _parse(kind, self._call(method, path, **more).content)

    def _rows(self, path: str, **more: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self._json("GET", path, **more)]

    def _json(self, method: str, path: str, **more: Any) -> Any:
        try:
            return self._call(method, path, **more).json()
        except ValueError as error:
            raise SiteError(f"{self.url} does not answer as a PandaFlow server") from error

    def _call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        repeat: bool | None = None,
        missing: bool = False,
        **more: Any,
    ) -> httpx.Response:
        """Make a call; repeat it after what may pass, if it may be made twice.

        ``repeat`` says whether it may be; None: as HTTP says of its method.
        """
        may = method in ("GET", "PUT", "DELETE") if repeat is None else repeat
        timeout = httpx.Timeout(self._timeout, read=self._timeout + wait)
        for tried in range(self._retries + 1):
            pause: float | None = None
            try:
                answer = self._http.request(
                    method, path, headers=self._headers(headers or {}), timeout=timeout, **more
                )
            except httpx.TransportError as error:
                failure = _unreachable(self.url, error)
                again = may or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            else:
                if answer.is_success or (missing and answer.status_code == 404):
                    return answer
                failure, pause = _refusal(answer), _retry_after(answer)
                again = answer.status_code in (_AGAIN if may else _UNTOUCHED)
            if not again or tried == self._retries:
                raise failure
            time.sleep(_pause(tried, pause))
        raise AssertionError("unreachable")

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        try:
            shown = self._credentials.header()
        except PandaflowError as error:
            passing = isinstance(error, IssuerUnavailable)
            raise SiteError(str(error), transient=passing) from error
        own = {VO_HEADER: self._vo} if self._vo else {}
        return {**shown, **own, **more}


def _trust(url: str, ca: str | Path | None) -> ssl.SSLContext | bool:
    if not url.startswith("https:"):
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise SiteError(f"{ca} cannot be used to check the server: {error}") from error


def _word(name: str) -> str:
    """Return a name as one step of a path.

    Raises
    ------
    SiteError
        It could be taken for several, or for a way up.
    """
    if not name or "/" in name or name in (".", ".."):
        raise SiteError(f"{name!r} cannot be part of an address: leave out slashes")
    return quote(name, safe="")


def _sent(body: BaseModel) -> dict[str, Any]:
    return {"content": body.model_dump_json(exclude_defaults=True), "headers": _JSON}


def _bodies(bundles: Sequence[Bundle]) -> Iterator[str]:
    """Yield bundles as bodies that the server takes."""
    group: list[Bundle] = []
    size = 0
    for bundle in bundles:
        # A guess will do: the server takes twice as much.
        size += 500 + len(bundle.work or b"") * 4 // 3 + _length(bundle)
        if group and (size > REQUEST_BYTES or len(group) == BATCH):
            yield _body(group)
            group, size = [], 0
        group.append(bundle)
    if group:
        yield _body(group)


def _length(bundle: Bundle) -> int:
    commands = sum(
        len(job.line) + 300 * len(job.inputs) + 100 * len(job.outputs) for job in bundle.commands
    )
    return commands + 8 * len(bundle.jobs)


def _body(group: Sequence[Bundle]) -> str:
    return Submission(bundles=tuple(group)).model_dump_json(exclude_defaults=True)


def _parse(kind: type[Content], data: bytes) -> Content:
    try:
        return kind.model_validate_json(data, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = "/".join(map(str, first["loc"]))
        raise SiteError(
            f"the server's answer is no {kind.__name__} ({where}: {first['msg']}): is it a "
            "PandaFlow server of this version?"
        ) from None


def _pause(tried: int, asked: float | None) -> float:
    """Return seconds until the next try: never all at once, and not before the server said."""
    longest = min(_PAUSES[1], _PAUSES[0] * 3.0**tried)
    return (asked or 0.0) + random.uniform(0.5, 1.0) * longest


def _retry_after(answer: httpx.Response) -> float | None:
    text = str(answer.headers.get("retry-after", ""))
    return min(float(text), 60.0) if text.isascii() and text.isdigit() and len(text) < 6 else None


def _refusal(answer: httpx.Response) -> SiteError:
    """Return what a server's error says."""
    status = answer.status_code
    try:
        told = answer.json()
    except ValueError:
        told = None
    detail = told.get("detail") or told.get("title") if isinstance(told, dict) else None
    words = "".join(c if c.isprintable() else " " for c in str(detail or answer.reason_phrase))
    return SiteError(f"{words[:_REPEATED]} ({status})", transient=status in _AGAIN)


def _unreachable(url: str, error: httpx.HTTPError) -> SiteError:
    said = str(error) or type(error).__name__
    wrong = "certificate" in said.lower()
    remedy = "give its authority's certificate by ca=" if wrong else "is it running?"
    return SiteError(f"{url} does not answer ({said}): {remedy}", transient=not wrong)
