"""Names of runs in the pool: a run with several executors on one server has one for each of them.

Outcomes are a log by name, and whoever asks for more acknowledges those before: two sessions
with the same name would take away each other's. A name depends on the settings alone, so that
the next driver finds it again.
"""

from __future__ import annotations

import threading
from hashlib import blake2b

from pandaflow.executors.grid.settings import GridSettings

#: By server and name, what sessions of this process use now. Global: sessions know nothing of each
#: other, and two executors with equal settings must not get the same name.
_taken: set[tuple[str, str]] = set()
_lock = threading.Lock()


def take(settings: GridSettings, run: str) -> str:
    """Return the name that a run has in the pool for an executor; nobody else here has it.

    Parameters
    ----------
    settings : GridSettings
    run : str
        The run's id, which is the name for an executor that uses any queue. Where the settings
        have a name, that makes the difference and nothing else.
    """
    asked = (settings.queue, settings.near, settings.tags, settings.requirements, settings.vo)
    first = run
    if settings.name is not None:
        first = f"{run}.{settings.name}" if settings.name else run
    elif any(asked):
        first = f"{run}.{blake2b(repr(asked).encode(), digest_size=4).hexdigest()}"
    with _lock:
        name, number = first, 1
        while (settings.server, name) in _taken:
            number += 1
            name = f"{first}.{number}"
        _taken.add((settings.server, name))
    return name


def give_back(settings: GridSettings, name: str) -> None:
    """Let others use a name again."""
    with _lock:
        _taken.discard((settings.server, name))
