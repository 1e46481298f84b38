"""Drivers in processes of their own, for tests that kill them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

PATIENCE = 90.0


class Drivers:
    """Drivers of one run, one after the other.

    Parameters
    ----------
    argv : sequence of str
        Command that is given the run's id or "new", the number of jobs and the seconds of each.
        It prints the id as soon as there is a run, and at last how the run ended.
    env : mapping of str to str
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._argv, self._env = list(argv), dict(env)
        self.run = "new"

    @contextmanager
    def killed(self, n: int, seconds: float) -> Iterator[None]:
        """Begin a run of n jobs; kill the driver at the end of the block."""
        with self._start(n, seconds) as first:
            assert first.stdout is not None
            try:
                self.run = first.stdout.readline().strip()
                yield
            finally:
                first.kill()

    def resume(self) -> str:
        """Go on with the run; return how it ended."""
        with self._start(0, 0.0) as second:
            try:
                told, _ = second.communicate(timeout=PATIENCE)
            finally:
                second.kill()
        return told.split()[-1]

    def _start(self, n: int, seconds: float) -> subprocess.Popen[str]:
        argv = [*self._argv, self.run, str(n), str(seconds)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=self._env)
