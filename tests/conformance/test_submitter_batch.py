"""Submitters of batch systems on real ones: Slurm and Grid Engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pandaflow.core.errors import SiteError
from pandaflow.harvester.batch import BatchSettings, SgeSettings, SlurmSettings
from pandaflow.harvester.submitter import Order, Shape, Submitter
from pandaflow.testing.gridengine import GridEngine
from pandaflow.testing.slurm import Slurm
from pandaflow.testing.submitters import Make, SubmitterTests


@pytest.mark.very_slow
class TestSlurm(SubmitterTests):
    @pytest.fixture
    def settings(self, slurm: Slurm, tmp_path: Path) -> BatchSettings:
        env = {"SLURM_CONF": slurm.env["SLURM_CONF"]}
        return SlurmSettings(partition="main", commands_env=env, folder=tmp_path / "shared")

    @pytest.fixture
    def make(self, settings: BatchSettings, tmp_path: Path) -> Make:
        return lambda label: settings.open(label, tmp_path / "own")

    @pytest.fixture
    def silent(self, make: Make, slurm: Slurm) -> Iterator[Submitter]:
        submitter = make("pf-silent")
        slurm.kill_controller()
        yield submitter
        slurm.restart_controller()

    def test_a_refusal_is_told_in_the_system_s_words(self, make: Make, order: Order) -> None:
        large = replace(order, shape=Shape(cores=1, memory=10**15))
        with pytest.raises(SiteError, match="Memory specification can not be satisfied") as caught:
            make(order.label).submit(large, [f"{order.label}-0"])
        assert not caught.value.transient

    def test_a_pilot_that_waits_says_why(
        self, submitter: Submitter, order: Order, slurm: Slurm
    ) -> None:
        for node in slurm.nodes:
            slurm.down(node)
        (id,) = self.begin(submitter, order).values()
        self.wait(lambda: bool(submitter.states([id])[id].reason))
        state = submitter.states([id])[id]
        assert state.phase == "waiting" and state.reason


@pytest.mark.very_slow
class TestGridEngine(SubmitterTests):
    @pytest.fixture
    def make(self, gridengine: GridEngine, tmp_path: Path) -> Make:
        settings = SgeSettings(commands_env=_plain(gridengine.env))
        return lambda label: settings.open(label, tmp_path / "own")

    @pytest.fixture
    def silent(self, make: Make, gridengine: GridEngine) -> Iterator[Submitter]:
        submitter = make("pf-silent")
        gridengine.kill_qmaster()
        yield submitter
        gridengine.restart_qmaster()


def _plain(env: dict[str, str]) -> dict[str, str]:
    """Return the variables that find a system: its own, and the path of its commands."""
    return {k: v for k, v in env.items() if k.startswith("SGE") or k == "PATH"}
