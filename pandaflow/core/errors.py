"""Errors say who must act.

``WorkflowError`` is the author's to mend, ``SiteError`` the site's (try again when
``transient``), ``StoreError`` the operator's, ``DataError`` whoever owns the data.
Each also inherits the natural built-in, so ``except ValueError`` keeps working.
"""

from __future__ import annotations

from collections.abc import Sequence


class PandaflowError(Exception):
    """Base of every error that PandaFlow raises on purpose."""


class WorkflowError(PandaflowError, ValueError):
    """The workflow is not what it should be; its author must change it."""


class DataError(PandaflowError, OSError):
    """An input or an output is missing, unreadable or corrupt."""


class StoreError(PandaflowError, RuntimeError):
    """The state store or the result store cannot do what was asked."""


class StoreUnavailable(StoreError):
    """The store does not answer now and may soon: a server restarts, somebody holds a lock."""


class RunNotFound(StoreError, LookupError):
    """No run of that id is in the store."""


class NotInRun(StoreError, LookupError):
    """The run has no task, job, bundle or request of that name, or there is no such state."""


class RunLocked(StoreError):
    """The run is driven by another live process; two drivers would run jobs twice."""


class SiteError(PandaflowError, RuntimeError):
    """An executor or a site failed.

    Parameters
    ----------
    message : str
        What happened, with the remedy.
    transient : bool
        Whether the same request may succeed later.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class InvalidTransition(PandaflowError, RuntimeError):
    """A state change that the transition table does not allow.

    Parameters
    ----------
    entity : str
        What was to change, for example ``"job 3 of select"``.
    start, finish : str
        The states.
    story : sequence of str
        The transitions of that entity so far, oldest first.
    """

    def __init__(self, entity: str, start: str, finish: str, story: Sequence[str] = ()) -> None:
        lines = "".join(f"\n  {line}" for line in story)
        super().__init__(f"{entity}: {start} -> {finish} is not a legal transition{lines}")
        self.entity, self.start, self.finish, self.story = entity, start, finish, tuple(story)


class RunFailed(PandaflowError, RuntimeError):
    """Raised by ``run.result()`` when jobs failed; names them and their causes.

    Attributes
    ----------
    run_id : str
    failures : tuple of (str, int, str)
        Task name, job index and one-line cause of each failed job (the first 1,000).
    """

    def __init__(
        self, run_id: str, status: str, failures: Sequence[tuple[str, int, str]], total: int
    ) -> None:
        self.run_id, self.status = run_id, status
        self.failures = tuple(failures)
        shown = "".join(f"\n  {task}[{index}]: {cause}" for task, index, cause in failures[:10])
        more = f"\n  ... and {total - 10} more" if total > 10 else ""
        super().__init__(
            f"run {run_id} is {status}: {total} job(s) failed{shown}{more}\n"
            "Look: run.logs(job), run.explain(job), run.reproduce(job). "
            "Go on: run.retry(), or run.result(partial=True) for what there is."
        )
