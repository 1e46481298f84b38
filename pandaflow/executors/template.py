"""Payloads: what jobs call, with marks where each job's own inputs go.

The template is compiled once a bundle, so that a job pays for filling it only.
"""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from operator import itemgetter
from typing import Any

from pandaflow.core.model import Failure
from pandaflow.core.template import NodeRef, Payload, Slot
from pandaflow.executors.outcome import JobFailed, failure_of

__all__ = ["Fill", "NodeRef", "Payload", "Slot", "bind", "compile_template", "load_payload"]

Fill = Callable[[Any], Any]
Lookup = Callable[[Any], Fill | None]


def compile_template(template: Any, lookup: Lookup) -> Fill | None:
    """Turn a template into a function of the job's inputs; None if it holds no marks.

    Parameters
    ----------
    template : object
    lookup : callable
        For a mark, returns how to get its value; None for all else.
    """
    mark = lookup(template)
    if mark is not None:
        return mark
    if type(template) is dict:
        values = compile_template(list(template.values()), lookup)
        keys = list(template)
        return values and (lambda inputs: dict(zip(keys, values(inputs), strict=True)))
    if type(template) not in (list, tuple):
        return None
    fills = [compile_template(item, lookup) for item in template]
    places = [(at, fill) for at, fill in enumerate(fills) if fill]
    if not places:
        return None
    kind, items = type(template), list(template)

    def fill_sequence(inputs: Any) -> Any:
        filled = items.copy()
        for at, fill in places:
            filled[at] = fill(inputs)
        return filled if kind is list else tuple(filled)

    return fill_sequence


def slot_of(mark: Any) -> Fill | None:
    """Read a :class:`Slot` from the list of the job's slot values."""
    return itemgetter(mark.number) if type(mark) is Slot else None


def node_of(mark: Any) -> Fill | None:
    """Read a :class:`NodeRef` from the dict of the upstream nodes' values."""
    return itemgetter(mark.name) if type(mark) is NodeRef else None


def bind(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], lookup: Lookup) -> Fill:
    """Return a function of the inputs that calls ``function`` with the template filled.

    Parameters
    ----------
    function : callable
    args, kwargs : tuple, mapping
        The template, with marks.
    lookup : callable
        :func:`slot_of` or :func:`node_of`.
    """
    if len(args) == 1 and not kwargs and (first := lookup(args[0])):
        return lambda inputs: function(first(inputs))
    fill_args = compile_template(tuple(args), lookup) or (lambda inputs: args)
    if not kwargs:
        return lambda inputs: function(*fill_args(inputs))
    named = dict(kwargs)
    fill_named = compile_template(named, lookup) or (lambda inputs: named)
    return lambda inputs: function(*fill_args(inputs), **fill_named(inputs))


# Unpickling costs more than a short job, and all bundles of a task share their payload.
_payloads: OrderedDict[bytes, Any] = OrderedDict()
_payloads_lock = threading.Lock()
_PAYLOADS_KEPT = 16


def load_payload(data: bytes) -> Any:
    """Unpickle a payload, or return what it gave the last time.

    Raises
    ------
    JobFailed
        It cannot be unpickled here; the failure names what is missing.
    """
    key = blake2b(data, digest_size=16).digest()
    with _payloads_lock:
        if key in _payloads:
            _payloads.move_to_end(key)
            return _payloads[key]
    try:
        payload = pickle.loads(data)
    except BaseException as error:  # noqa: BLE001 - unpickling imports and runs user code
        raise JobFailed(unloadable(error)) from None
    with _payloads_lock:
        _payloads[key] = payload
        while len(_payloads) > _PAYLOADS_KEPT:
            _payloads.popitem(last=False)
    return payload


def unloadable(error: BaseException) -> Failure:
    """Describe why a payload cannot be unpickled here."""
    failure = failure_of(error)
    what = f"the payload cannot be loaded on this worker: {failure.message}"
    if isinstance(error, ImportError):
        module = error.name or "a module"
        what += f"; install {module} in the environment of the workers, or put its code where they"
        what += " import from (code of the workflow's own script travels along, its imports do not)"
    return replace(failure, message=what)
