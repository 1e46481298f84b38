from __future__ import annotations

from pathlib import Path

import pytest

from pandaflow.harvester.local import LocalSettings
from pandaflow.testing.submitters import Make, SubmitterTests


class TestLocal(SubmitterTests):
    unknown = "pf-nobody-0"

    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        return lambda label: LocalSettings().open(label, tmp_path / "pilots")
