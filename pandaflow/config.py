"""Settings of an installation: read once from the environment, then passed in.

======================  ==========================================================
variable                meaning (default)
======================  ==========================================================
PANDAFLOW_STORE         SQLAlchemy URL of the state store (SQLite in ``.pandaflow/``)
PANDAFLOW_RESULTS       fsspec URL of the result store (beside the state store)
PANDAFLOW_LEASE_SECONDS a driver that is silent for so long has lost its run (15)
PANDAFLOW_LOG_LEVEL     level of the ``pandaflow`` logger (WARNING)
======================  ==========================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from pandaflow.core.errors import WorkflowError
from pandaflow.core.quantities import parse_seconds

PREFIX = "PANDAFLOW_"
DEFAULT_STORE = "sqlite:///.pandaflow/pandaflow.db"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


# Not a pydantic model: importing pydantic would be a fifth of what `pandaflow status` takes.
@dataclass(frozen=True, slots=True)
class Settings:
    """What an installation may choose.

    Attributes
    ----------
    store : str
        SQLAlchemy URL of the state store.
    results : str or None
        fsspec URL under which runs keep their results; None: beside the state store.
    lease_seconds : float
        How long a driver may be silent before another may take its run.
    log_level : {'DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL'}
    """

    store: str = DEFAULT_STORE
    results: str | None = None
    lease_seconds: float = 15.0
    log_level: str = "WARNING"


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from environment variables; empty ones count as not set.

    Parameters
    ----------
    environ : mapping of str to str, optional
        Default: ``os.environ``.

    Raises
    ------
    WorkflowError
        Names the variable whose value is no good.
    """
    source = os.environ if environ is None else environ
    given = {f.name: source.get(PREFIX + f.name.upper(), "") for f in fields(Settings)}
    return Settings(
        store=given["store"] or DEFAULT_STORE,
        results=given["results"] or None,
        lease_seconds=_lease(given["lease_seconds"] or "15"),
        log_level=_level(given["log_level"] or "WARNING"),
    )


def _lease(text: str) -> float:
    seconds = parse_seconds(_number(text), f"{PREFIX}LEASE_SECONDS")
    if seconds < 1:
        raise WorkflowError(f"{PREFIX}LEASE_SECONDS={text!r}: give at least 1 second")
    return seconds


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _level(text: str) -> str:
    if text.upper() not in LEVELS:
        raise WorkflowError(f"{PREFIX}LOG_LEVEL={text!r}: use one of {', '.join(LEVELS)}")
    return text.upper()
