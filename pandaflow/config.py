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
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pandaflow.core.errors import WorkflowError
from pandaflow.core.quantities import parse_seconds

PREFIX = "PANDAFLOW_"
DEFAULT_STORE = "sqlite:///.pandaflow/pandaflow.db"

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class Settings(BaseModel):
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

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(default=DEFAULT_STORE, min_length=1)
    results: str | None = Field(default=None, min_length=1)
    lease_seconds: Annotated[float, BeforeValidator(parse_seconds)] = Field(default=15.0, ge=1.0)
    log_level: Annotated[Level, BeforeValidator(lambda text: str(text).upper())] = "WARNING"


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
    given = {name: source.get(PREFIX + name.upper(), "") for name in Settings.model_fields}
    try:
        return Settings.model_validate({name: text for name, text in given.items() if text})
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        raise WorkflowError(f"{name}={first['input']!r}: {first['msg']}") from None
