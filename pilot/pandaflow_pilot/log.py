"""The pilot's log: one line each, on standard error, with the time in UTC."""

from __future__ import annotations

import logging
import sys
import time

LOGGER = logging.getLogger("pandaflow_pilot")
LEVELS = ("debug", "info", "warning", "error")


def set_up(level: str, name: str) -> None:
    """Write messages from ``level`` on to standard error.

    Parameters
    ----------
    level : {'debug', 'info', 'warning', 'error'}
    name : str
        Of the pilot.
    """
    formatter = logging.Formatter(
        f"%(asctime)s {name.replace('%', '%%')} %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
