from __future__ import annotations

import os
from pathlib import Path

from pandaflow.harvester.tidying import KEPT, tidy


def test_only_pilots_that_are_long_gone_are_tidied_away(tmp_path: Path) -> None:
    now = 10.0 * KEPT
    files = {
        "l-old.sh": now - KEPT - 9,
        "l-old.log": now - KEPT - 9,
        "l-new.sh": now - KEPT - 9,
        "l-new.log": now - KEPT + 9,
        "l-runs.pid": now - KEPT - 9,
        "l-ran.pid": now - KEPT - 9,
        "l-ran.exit": now - KEPT - 9,
        "other-1.sh": now - KEPT - 9,
    }
    for name, at in files.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    assert tidy(tmp_path, "l", now) == 2
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"l-new.sh", "l-new.log", "l-runs.pid", "other-1.sh"}
