"""Batch jobs of drivers that died: the next session of the run ends them before it begins.

What they had finished is in the result store, and counts.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.element import OWNER, read_reports, write_whole

#: Seconds that cancelled batch jobs are given to be gone.
GONE_S = 90.0
#: In the folder of an array: none of its elements is left.
_OVER = "over"


def take_over(control: Control, folder: Path, token: str, pause: float) -> None:
    """Make ``token`` the owner of all arrays in ``folder``, and end what others left there.

    Parameters
    ----------
    control : Control
    folder : Path
        Of the run's arrays; made if there is none.
    token : str
        Elements of other owners begin nothing from now on.
    pause : float
        Seconds between two looks at the queue.

    Raises
    ------
    SiteError
        The batch system does not answer, or they do not go away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / OWNER, token.encode())
    left = {path: ids(path) for path in folder.iterdir() if _in_use(path)}
    wanted = sorted(set().union(*left.values()))
    deadline = time.monotonic() + GONE_S
    while wanted and _cancelled(control, wanted, patient=time.monotonic() < deadline):
        time.sleep(min(0.5, pause))
    for path in left:
        retire(path)


def _cancelled(control: Control, wanted: list[str], *, patient: bool) -> bool:
    """Cancel what lives; return whether there was anything, or nobody could say."""
    try:
        found = control.look(wanted)
        live = sorted({ref[0] for ref, status in found.items() if status.live})
        control.cancel([(number, None) for number in live])
    except SiteError as error:
        if not (error.transient and patient):
            raise
        return True
    if live and not patient:
        raise SiteError(
            f"batch jobs of an earlier driver of the run do not end: {', '.join(live)}; "
            "cancel them by hand, then resume"
        )
    return bool(live)


def ids(folder: Path) -> set[str]:
    """Return the id of an array, from its submitter or, if that died too soon, its elements."""
    try:
        return {(folder / "id").read_text()}
    except OSError:
        messages = [m for path in folder.glob("*.report") for m in read_reports(path, 0)[0]]
        return {str(m["id"]) for m in messages if m["op"] == "here" and m.get("id")}


def mark(path: Path) -> None:
    """Leave an empty file, where that is possible."""
    with suppress(OSError):  # the batch system is told the same in its own words
        path.touch()


def retire(folder: Path) -> None:
    """Note that no element of an array is left."""
    mark(folder / _OVER)


def _in_use(path: Path) -> bool:
    return path.is_dir() and not (path / _OVER).exists()
