"""Arrays in folders that no session of the run has any more: it had more executors then.

The first session that settles what was left takes those folders, too. It touches a queue only if
it talks to the very same batch system: elsewhere the same ids are other jobs. What it must leave
there begins nothing more.
"""

from __future__ import annotations

import logging
from hashlib import blake2b
from pathlib import Path

from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.leftovers import Leftover, in_use, own, take_over
from pandaflow.executors.batch.settings import BatchSettings

logger = logging.getLogger("pandaflow.executors")

#: In the folder of a session's arrays: the batch system they were sent to.
_SYSTEM = "system"


def system_of(settings: BatchSettings) -> str:
    """Return a name of the batch system that differs if its commands are told other things."""
    told = repr(sorted(settings.commands_env.items()))
    return f"{settings.backend.name} {blake2b(told.encode(), digest_size=8).hexdigest()}"


def sign(folder: Path, system: str) -> None:
    """Note where the arrays in a folder are sent."""
    (folder / _SYSTEM).write_text(system)


def take_in(
    control: Control, folder: Path, token: str, system: str, pause: float
) -> list[Leftover]:
    """Make ``token`` the owner of all arrays in a folder; return those that may be adopted.

    Others are ended, where that is possible.

    Parameters
    ----------
    control : Control
    folder : Path
        That no session uses.
    token : str
        Of the session that takes the arrays over.
    system : str
        Where its batch jobs go: see :func:`system_of`.
    pause : float
        Seconds between two looks at the queue.

    Returns
    -------
    list of Leftover
        The newest first.
    """
    try:
        if _signature(folder) == system:
            return take_over(control, folder, token, pause)
        reason = "they were sent to another batch system"
    except SiteError as error:
        reason = str(error)
    own(folder, token, ())
    if in_use(folder):
        logger.warning(
            "batch jobs of an executor that the run no longer has begin nothing more, but cannot "
            "be ended from here (%s); see %s",
            *(reason, folder),
        )
    return []


def _signature(folder: Path) -> str:
    try:
        return (folder / _SYSTEM).read_text()
    except OSError:
        return ""
