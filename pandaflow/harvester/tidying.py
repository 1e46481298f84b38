"""Files that pilots have left in a submitter's folder: scripts, logs, notes."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path

#: Seconds for which files of a pilot are kept after the last of them was written: longer than any
#: waits in a batch system, which may read its script only when it begins.
KEPT = 30 * 86_400.0


def tidy(folder: Path, label: str, now: float) -> int:
    """Remove files of pilots that are long gone; return how many pilots these were.

    Files are named after their pilot, with a suffix. A pilot that has a ``.pid`` and no ``.exit``
    may still run.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for path in folder.glob(f"{label}-*.*"):
        files[path.name.partition(".")[0]].append(path)
    removed = 0
    for own in files.values():
        kinds = {path.suffix for path in own}
        with contextlib.suppress(OSError):  # another harvester may be at it
            old = max(path.stat().st_mtime for path in own) < now - KEPT
            if old and (".pid" not in kinds or ".exit" in kinds):
                for path in own:
                    path.unlink(missing_ok=True)
                removed += 1
    return removed
