"""A server's errors as those that a database's store raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pandaflow.core.errors import (
    DataError,
    NotInRun,
    PandaflowError,
    RunLocked,
    RunNotFound,
    SiteError,
    StoreError,
    StoreUnavailable,
    WorkflowError,
)
from pandaflow.grid.calls import ServerRefused
from pandaflow.grid.identity import Forbidden

#: By the name that the server gives; see ``pandaflow.server.problems``.
NAMED: Mapping[str, type[PandaflowError]] = {
    kind.__name__: kind
    for kind in (DataError, Forbidden, NotInRun, RunLocked, RunNotFound, WorkflowError)
}


def as_store_error(error: SiteError) -> PandaflowError:
    """Return what a store on a database would have raised."""
    if isinstance(error, ServerRefused):
        kind = NAMED.get(error.error)
        if kind is not None:
            return kind(error.detail)
        return (StoreUnavailable if error.transient else StoreError)(str(error))
    return (StoreUnavailable if error.transient else StoreError)(str(error))


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of calls into those of a store."""
    try:
        yield
    except SiteError as error:
        raise as_store_error(error) from error
