"""The pilot's log: one line each, on standard error, with the time in UTC."""

from __future__ import annotations

import logging
import sys
import time

LOGGER = logging.getLogger("pandaflow_pilot")
LEVELS = ("debug", "info", "warning", "error")


#: Seconds for which a line is not said again.
_QUIET = 60.0
#: Lines that are remembered.
_LINES = 200


class Fewer(logging.Filter):
    """Lets a line pass once a minute; tells how often it would have come meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is to be written."""
        line, now = record.getMessage(), record.created
        at, times = self._said.get(line, (now - _QUIET, 0))
        if now - at < _QUIET:
            self._said[line] = at, times + 1
            return False
        if len(self._said) >= _LINES:
            self._said = {k: v for k, v in self._said.items() if now - v[0] < _QUIET}
        self._said[line] = now, 0
        if times:
            record.msg, record.args = f"{line} (and {times} times more before)", ()
        return True


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
    handler.addFilter(Fewer())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
