"""Running a batch system's commands: the only place here that starts processes."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.model import Backend, BatchRequest, BatchStatus, JobRef, Queue
from pandaflow.executors.batch.script import batch_files

#: Seconds that a command may take: a busy controller answers late.
_TIMEOUT_S = 60.0


class Control:
    """Submits, watches and cancels batch jobs. Thread-safe.

    Parameters
    ----------
    backend : Backend
    env : mapping, optional
        Variables for the commands, besides those of this process (``SLURM_CONF``, ``PATH``).

    Raises
    ------
    SiteError
        The commands of the batch system are not here.
    """

    def __init__(self, backend: Backend, env: Mapping[str, str] | None = None) -> None:
        self.backend = backend
        self._env = {**os.environ, **(env or {}), **backend.environment}
        self._user = _user()
        self._lock = threading.Lock()  # controllers like one question at a time
        self._check()

    def _check(self) -> None:
        """Refuse at once to work without the commands, and not when a job is submitted."""
        submit = self.backend.submit("script", BatchRequest(name="check"))
        for program in (submit[0], self.backend.poll(None, self._user)[0]):
            if shutil.which(program, path=self._env.get("PATH", os.defpath)) is None:
                raise self._missing(program)

    def _missing(self, program: str) -> SiteError:
        return SiteError(
            f"{program} is not here: the commands of {self.backend.name} must be on the PATH "
            "(run on a login node, or load its module)"
        )

    def submit(
        self, script: Path, request: BatchRequest, body: str, prologue: Sequence[str] = ()
    ) -> str:
        """Write the script and submit it; return the job's id.

        Raises
        ------
        SiteError
            The system refused, in its own words; transient if it did not answer.
        """
        for path, text in batch_files(self.backend, str(script), request, body, prologue).items():
            Path(path).write_text(text, encoding="utf-8")
        os.chmod(script, 0o755)
        argv = self.backend.submit(str(script), request)
        return self.backend.parse_submit(*self._run(argv, script.parent))

    def look(self, ids: Sequence[str]) -> dict[JobRef, BatchStatus]:
        """Return what the system knows of some jobs, from its queue and then from its history.

        Jobs that are in neither are left out: whether they are lost is for the caller to say.
        """
        if not ids:
            return {}
        wanted = set(ids)
        answer = self._run(self.backend.poll(list(ids), self._user))
        found = self._mine(self.backend.parse_poll(*answer), wanted)
        # Ended jobs too: a queue that still lists them seldom tells their exit codes.
        gone = sorted(wanted - {ref[0] for ref, status in found.items() if status.live})
        if gone:
            found |= self._mine(self._history(gone), set(gone))
        return found

    def _history(self, ids: Sequence[str]) -> dict[JobRef, BatchStatus]:
        try:
            answer = self._run(self.backend.history(ids, self._user))
            return self.backend.parse_history(*answer)
        except SiteError as error:
            if error.transient or not getattr(self.backend, "accounting", False):
                raise
            # A site without accounting tells of ended jobs for some minutes in another way.
            self.backend = replace(self.backend, accounting=False)  # type: ignore[type-var]
            return self._history(ids)

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """End jobs, running or not."""
        if refs:
            self.backend.parse_cancel(*self._run(self.backend.cancel(list(refs))))

    def queues(self) -> list[Queue]:
        """Return the queues that there are."""
        return self.backend.parse_queues(*self._run(self.backend.queues()))

    def ask(self, argv: Sequence[str]) -> tuple[str, str, int]:
        """Run a question of the system's own; return its output, complaints and exit code.

        Raises
        ------
        SiteError
            It cannot be run, or does not answer.
        """
        return self._run(argv)

    @property
    def user(self) -> str:
        """Whom the jobs belong to."""
        return self._user

    @staticmethod
    def _mine(found: Mapping[JobRef, BatchStatus], wanted: set[str]) -> dict[JobRef, BatchStatus]:
        return {ref: status for ref, status in found.items() if ref[0] in wanted}

    def _run(self, argv: Sequence[str], folder: Path | None = None) -> tuple[str, str, int]:
        try:
            with self._lock:
                done = subprocess.run(
                    argv,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=_TIMEOUT_S,
                    env=self._env,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    check=False,
                )
        except FileNotFoundError:
            raise self._missing(argv[0]) from None
        except OSError as error:
            raise SiteError(
                f"{argv[0]} cannot be run: {error.strerror or error}", transient=True
            ) from error
        except subprocess.TimeoutExpired:
            raise SiteError(
                f"{argv[0]} did not answer within {_TIMEOUT_S:g} s", transient=True
            ) from None
        return done.stdout, done.stderr, done.returncode


def _user() -> str:
    """Return whom the jobs belong to: the account, whatever ``USER`` says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container an account need not have a name
        return os.environ.get("USER") or str(os.getuid())
