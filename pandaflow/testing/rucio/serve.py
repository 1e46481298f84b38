"""Rucio's REST server, and its daemons on request; a script for the Python that has them.

``serve.py tables`` makes the tables of an empty database; ``serve.py PORT`` serves. ``RUCIO_HOME``
names the folder of the configuration.

Beside Rucio's own routes there are ``GET /test/counts``, which tells how often each of them was
asked for, and ``POST /test/daemons``, which runs daemons one after the other, each once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

Environ = dict[str, Any]
Answer = Iterable[bytes]


class Front:
    """Rucio's application, counted, with the routes of tests beside it."""

    def __init__(self, application: Callable[[Environ, Any], Answer]) -> None:
        self._application = application
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._daemons: Daemons | None = None

    def __call__(self, environ: Environ, start: Any) -> Answer:
        """Answer a request, as WSGI has it."""
        path = str(environ["PATH_INFO"])
        if path.startswith("/test/"):
            return self._test(path, environ, start)
        with self._lock:
            self._counts[f"{environ['REQUEST_METHOD']} {path}"] += 1
        return self._application(environ, start)

    def _test(self, path: str, environ: Environ, start: Any) -> Answer:
        if path == "/test/counts":
            with self._lock:
                return _json(start, self._counts)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        wanted = json.loads(environ["wsgi.input"].read(length))
        with self._lock:  # counts wait, too: they are of after the daemons
            if self._daemons is None:
                self._daemons = Daemons()
            self._daemons.run(wanted)
        return _json(start, {})


def _json(start: Any, value: Any) -> Answer:
    body = json.dumps(value).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


class Daemons:
    """Rucio's daemons, and a transfer service that copies files of this machine."""

    def __init__(self) -> None:
        # Importing them takes seconds, which most servers need not spend.
        from rucio.core import transfer
        from rucio.daemons.badreplicas import minos, necromancer
        from rucio.daemons.conveyor import finisher, poller, submitter
        from rucio.daemons.judge import cleaner, evaluator, repairer
        from rucio.daemons.undertaker import undertaker

        for module in (cleaner, evaluator, minos, necromancer, repairer):
            module.graceful_stop = NoWait()
        for module in (finisher, poller, submitter, undertaker):
            module.GRACEFUL_STOP = NoWait()
        self._copies = Copies()
        transfer.TRANSFERTOOL_CLASSES_BY_NAME["mock"] = _transfertool(self._copies)
        once = {"once": True, "sleep_time": 0}
        self._known: dict[str, Callable[[], Any]] = {
            "cleaner": lambda: cleaner.run(**once),
            "evaluator": lambda: evaluator.run(**once),
            "finisher": lambda: finisher.finisher(**once),
            "minos": lambda: minos.run(**once),
            "necromancer": lambda: necromancer.run(**once),
            "poller": lambda: poller.run(**once, older_than=0),
            "repairer": lambda: repairer.run(**once),
            "submitter": lambda: submitter.submitter(**once, transfertools=["mock"]),
            "undertaker": lambda: undertaker.run(**once),
        }

    def run(self, wanted: dict[str, Any]) -> None:
        """Run the daemons in ``names``; ``fail`` and ``limit`` are of copies."""
        self._copies.fail = frozenset(wanted.get("fail", ()))
        self._copies.limit = wanted.get("limit")
        for name in wanted["names"]:
            self._known[name]()


class NoWait(threading.Event):
    """An event for which nobody waits: a daemon's first turn comes at once."""

    def wait(self, timeout: float | None = None) -> bool:
        """Return whether it is set."""
        return self.is_set()


class Copies:
    """What became of copies.

    Attributes
    ----------
    fail : frozenset of str
        Names of files whose copies go wrong from now on.
    limit : int or None
        So many copies are told to have ended at a poll, no more; None: all.
    """

    def __init__(self) -> None:
        self.fail: frozenset[str] = frozenset()
        self.limit: int | None = None
        self._good: dict[str, bool] = {}

    def copy(self, request: str, name: str, source: str, target: str) -> None:
        """Copy a file between two PFNs of this machine."""
        try:
            if name in self.fail:
                raise OSError(f"{name} is to fail")
            os.makedirs(os.path.dirname(_path(target)), exist_ok=True)
            shutil.copy(_path(source), _path(target))
        except OSError:
            self._good[request] = False
        else:
            self._good[request] = True

    def ended(self, requests: Iterable[str]) -> dict[str, bool | None]:
        """Return which copies went well; None: they still run."""
        found: dict[str, bool | None] = {}
        for request in requests:
            told = self.limit is None or self.limit > 0
            if self.limit is not None:
                self.limit -= 1
            found[request] = self._good.get(request, True) if told else None
        return found


def _path(pfn: str) -> str:
    return unquote(urlsplit(pfn).path)


def _transfertool(copies: Copies) -> Any:
    """Return a transfer tool as the conveyor takes it."""
    from rucio.db.sqla.constants import RequestState
    from rucio.transfertool.mock import MockTransferStatusReport, MockTransfertool

    states = {True: RequestState.DONE, False: RequestState.FAILED, None: RequestState.SUBMITTED}

    class PosixCopy(MockTransfertool):  # type: ignore[misc, unused-ignore]
        """Copies at once; how a copy ended is told when the poller asks."""

        external_name = "mock"

        def submit(self, transfers: Any, job_params: Any, timeout: Any = None) -> str:
            for one in transfers:
                source, target = one.source_url(one.sources[0]), one.dest_url
                copies.copy(one.rws.request_id, one.rws.name, source, target)
            return str(uuid.uuid4())

        def bulk_query(self, requests_by_eid: Any, timeout: Any = None) -> Any:
            found: dict[str, dict[str, Any]] = {}
            for job, requests in requests_by_eid.items():
                found[job] = {}
                for request, good in copies.ended(requests).items():
                    report = MockTransferStatusReport(request, job)
                    report.state = states[good]
                    found[job][request] = report
            return found

    return PosixCopy


def main() -> None:
    """Make tables, or serve."""
    if sys.argv[1] == "tables":
        from rucio.db.sqla.util import build_database, create_base_vo, create_root_account

        build_database()
        create_base_vo()
        create_root_account()
        return
    from rucio.web.rest.flaskapi.v1.main import application
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", int(sys.argv[1]), Front(application), threaded=True)


if __name__ == "__main__":
    main()
