"""The functions that are registered with the service: sources, and which are registered already.

A function that runs bundles carries the pickled payload of one code version, so that it does not
travel with every bundle. Ids are kept in a file beside the runs' results, for all runs there.
"""

from __future__ import annotations

import base64
import json
import pickletools
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

from pandaflow import __version__
from pandaflow.data.results import ResultStore
from pandaflow.executors.remote import wire

#: Bytes of a payload that a function carries at most; larger ones travel with their bundles.
CARRIED = 1_000_000
#: What cloudpickle calls to build a function again from its byte code.
_BUILDERS = frozenset({"CodeType", "_make_function"})

PROBE = '''\
def pandaflow_probe():
    """Tell what there is where jobs run."""
    import os, platform, socket, sys
    try:
        import pandaflow
        version = pandaflow.__version__
    except ImportError:
        version = ""
    return {
        "python": list(sys.version_info[:3]),
        "pandaflow": version,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "home": os.path.expanduser("~"),
    }
'''

_BUNDLE = '''\
def pandaflow_bundle(work):
    """Run a bundle of jobs."""
    import base64
    from pandaflow.executors.remote import worker
    code = {code}
    return worker.run(work, code and base64.b85decode(code))
'''


@dataclass(frozen=True, slots=True)
class Function:
    """A function to be registered.

    Attributes
    ----------
    name : str
    source : str
        Empty: a shell function.
    walltime : float or None
        Of a shell function.
    """

    name: str
    source: str = ""
    walltime: float | None = None

    @property
    def key(self) -> str:
        """What tells it from others: its code, and the versions that it is meant for."""
        about = [self.source, self.walltime, __version__, sys.version_info[:2]]
        digest = blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()
        return f"{self.name}-{digest}"


def bundle_function(code: bytes | None) -> Function:
    """Return the function that runs bundles with a payload; None: payloads come with bundles."""
    literal = repr(base64.b85encode(code).decode()) if code is not None else "None"
    return Function("pandaflow_bundle", _BUNDLE.format(code=literal))


def probe_function() -> Function:
    """Return the function that tells what an endpoint has."""
    return Function("pandaflow_probe", PROBE)


def shell_function(walltime: float | None) -> Function:
    """Return the function that runs any command line."""
    return Function("pandaflow_shell", walltime=walltime)


def has_byte_code(pickled: bytes) -> bool:
    """Tell whether a pickle holds byte code, which one minor version of Python reads only.

    Functions that both sides import travel by name. Pickles within pickles are looked into.
    """
    for _, value, _ in pickletools.genops(pickled):
        if isinstance(value, str) and value in _BUILDERS:
            return True
        if isinstance(value, bytes) and value[:1] == b"\x80" and _holds_byte_code(value):
            return True
    return False


def _holds_byte_code(data: bytes) -> bool:
    try:
        return has_byte_code(data)
    except ValueError:  # it only begins like a pickle
        return False


def beside(results: ResultStore) -> str | None:
    """Return the folder or URL that all runs' results are in; None if a run's has no parent."""
    parent, _, name = (results.local or results.url).rpartition("/")
    return parent if name and parent and not parent.endswith(":/") else None


class Registry:
    """Ids of functions.

    Parameters
    ----------
    service : str
        Address of the service, which is part of the key.
    register : callable
        Registers a function and returns its id.
    folder : str or None
        Folder or URL where ids are kept for later runs; None: nowhere.
    """

    def __init__(
        self, service: str, register: Callable[[Function], str], folder: str | None
    ) -> None:
        self._service, self._register = service, register
        self._url = f"{folder}/globus-functions.json" if folder is not None else None
        self._ids: dict[str, str] = {}
        self._lock = threading.Lock()

    def id_of(self, function: Function) -> str:
        """Return the id of a function, registered now if it has none."""
        key = f"{self._service} {function.key}"
        with self._lock:
            if key not in self._ids:
                self._ids = self._kept() | self._ids
            if key not in self._ids:
                self._ids[key] = self._register(function)
                self._keep({key: self._ids[key]})
            return self._ids[key]

    def forget(self, function: Function) -> None:
        """Note that the service does not know a function any more."""
        key = f"{self._service} {function.key}"
        with self._lock:
            self._ids.pop(key, None)
            kept = self._kept()
            if kept.pop(key, None) is not None:
                self._write(kept)

    def _kept(self) -> dict[str, str]:
        with suppress(OSError, ValueError):
            if self._url is not None:
                kept = json.loads(wire.read(wire.Ref(self._url, 0)))
                return {str(key): str(value) for key, value in kept.items()}
        return {}

    def _keep(self, new: Mapping[str, str]) -> None:
        # Runs that register at the same time may lose each other's: they register once more.
        self._write(self._kept() | dict(new))

    def _write(self, ids: Mapping[str, str]) -> None:
        if self._url is not None:
            with suppress(OSError):  # a cache that cannot be written is no failure
                wire.write(self._url, json.dumps(ids, indent=1).encode())
