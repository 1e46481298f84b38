"""Studies: what users hold in their hands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pandaflow import places
from pandaflow.core.errors import StoreError, WorkflowError
from pandaflow.hpo.book import TrialRecord
from pandaflow.hpo.driver import StudyDriver, StudyPlan, head_of
from pandaflow.hpo.errors import StudyFailed
from pandaflow.hpo.looking import Looking
from pandaflow.hpo.manual import AskedTrial, Manual
from pandaflow.hpo.searching import Settings, place, study_plan
from pandaflow.hpo.space import Point, parse_space
from pandaflow.store.sql import SqlStore, this_process

if TYPE_CHECKING:
    pass

_LEASE_S = 20.0


def studies(store: Any = None, limit: int = 100) -> list[Study]:
    """Return the newest studies of a store."""
    opened = places.open_database(store)
    return [load(state.name, opened) for state in opened.studies(limit)]


def load(name: str, store: Any = None) -> Study:
    """Return a study by name, to look at it.

    Raises
    ------
    StoreError
        There is none; the message lists those that are.
    """
    opened = places.open_database(store)
    state = opened.study(name)
    if state is None:
        known = ", ".join(study.name for study in opened.studies(10)) or "none"
        raise StoreError(f"no study {name!r} in {opened.url}; there are: {known}")
    return Study(name, directions=state.head["directions"], store=opened)


class Study(Looking):
    """An optimization: trials, what came of them, and who proposes the next.

    Everything is kept in the store under the study's name: another process sees the same study,
    and the same script run again goes on where the last one ended.

    Parameters
    ----------
    name : str
    direction : {'minimize', 'maximize'}, optional
    directions : sequence of these, optional
        For several objectives.
    optimizer : optional
        ``hpo.optuna("tpe")`` (default), ``hpo.nevergrad("CMA")``, ``hpo.random()``,
        ``hpo.grid()``, ``hpo.sobol()``, ``hpo.lhs(n)``, ``hpo.external(command)``.
    pruner : str, (str, options) or Optuna pruner, optional
        ``"median"``, ``"asha"``, ``"hyperband"``, ``"percentile"``, ``"threshold"``,
        ``"patient"``, ``"wilcoxon"``.
    seed : int, optional
        All randomness follows from it; drawn once and kept if not given.
    store : optional
        As for ``wf.run``.
    objective, space, **settings : optional
        Defaults for :meth:`optimize`, so that ``pandaflow hpo run FILE.py:STUDY`` can run it.

    Examples
    --------
    >>> from pandaflow import hpo
    >>> study = hpo.Study("parabola", seed=7)
    >>> study.name
    'parabola'
    """

    def __init__(
        self,
        name: str,
        *,
        objective: Any = None,
        space: Any = None,
        store: Any = None,
        **settings: Any,
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise WorkflowError(f"a study needs a name, not {name!r}")
        super().__init__(store)
        self.name, self.objective = name, objective
        self._space = None if space is None else parse_space(space)
        self._settings = dict(settings)
        self._pending: list[tuple[str, dict[str, Any]]] = []
        self._manual: Manual | None = None

    # --- running ------------------------------------------------------------------------

    def optimize(
        self,
        objective: Any = None,
        space: Any = None,
        *,
        executor: Any = None,
        executors: Mapping[str, Any] | None = None,
        resources: Any = None,
        retries: int | None = None,
        progress: bool | None = None,
        callbacks: Callable[[Study, TrialRecord], None] | None = None,
        **settings: Any,
    ) -> Study:
        """Evaluate trials until there are ``n_trials`` of them or a rule ends the study.

        Called again, also by another process after a crash, it goes on with the same study.

        Parameters
        ----------
        objective : task, workflow or function
            Called with the parameters of a point, and with ``trial`` if it takes that. Returns a
            number, a tuple or dict of numbers, or an ``hpo.Result``.
        space : Space, dict or define-by-run function
        n_trials : int, optional
            Trials of the study in all, failed and pruned ones included.
        parallel : int
            Trials at once (default 8).
        executor, executors : optional
            As for ``wf.run``.
        stop : rule or list of rules, optional
            ``hpo.target``, ``hpo.patience``, ``hpo.timeout``, ``hpo.cost``.
        on_error : 'fail', 'stop' or float
            What becomes of a trial that failed for good: it is told as failed, it ends the
            study, or it counts as this value.
        max_failed : float
            A larger share of failures (of at least ten trials) ends the study.
        repeats : int
            Evaluations of each point, with different ``trial.seed`` and ``trial.repeat``.
        aggregate : 'mean', 'median', 'min', 'max' or function
            Of the values of the repeats.
        resources : dict or function of the parameters, optional
            Options of a trial's job: ``{"cores": 4, "memory": "8 GiB"}``.
        retries : int, optional
            How often a trial that raises is tried again before it counts as failed. Trials lost
            with a worker are always tried again.
        ahead : int, optional
            Points asked for before a slot is free. They hide the optimizer's time, and are chosen
            knowing less. Default: three quarters of ``parallel`` if the first trials take less
            than half a second, a quarter below five seconds, else none.
        patience : float
            Seconds that the optimizer may think about a point (default 60).
        extend : bool
            Go on although the search space was changed.
        progress : bool, optional
            Show progress; default: in terminals and notebooks.
        callbacks : function of (study, trial), optional
            Called after each trial that ended.
        **settings
            Other keywords are passed to the objective.

        Raises
        ------
        StudyFailed
            Too many trials fail, or ``on_error="stop"`` and one did.
        """
        given = {**self._settings, **settings}
        own = {key: given.pop(key) for key in list(given) if key in _OWN}
        objective = objective if objective is not None else self.objective
        chosen = self._space if space is None else parse_space(space)
        if objective is None or chosen is None:
            raise WorkflowError(f"study {self.name!r}: give optimize() an objective and a space")
        self._space = chosen
        plan = study_plan(self.name, chosen, Settings(**own))
        self.close()
        self._ensure(plan)
        if self._is_complete(plan):
            return self
        if retries is not None:
            resources = _with_retries(resources, retries)
        workflow = _as_workflow(plan, objective, resources, given)
        self._retire_old_run()
        from pandaflow.hpo.watching import Audience

        audience = Audience(self, progress, callbacks, plan.terms.n_trials)
        audience.attend(workflow.submit(executor, executors, self._store, self.name))
        self._check_end()
        return self

    def _check_end(self) -> None:
        state = self._store.study(self.name)
        if state is not None and state.status == "failed":
            raise StudyFailed(f"study {self.name!r}: {state.summary.get('reason')}")

    def _is_complete(self, plan: StudyPlan) -> bool:
        book, n = self.book, plan.terms.n_trials
        return n is not None and book.asked >= n and not book.counts["running"]

    def _ensure(self, plan: StudyPlan) -> None:
        """Create the study unless it is there, and write what was put off until then."""
        if self._store.study(self.name) is None:
            import secrets

            seed = plan.optimizer.seed
            seed = secrets.randbits(63) if seed is None else seed
            self._store.create_study(self.name, head_of(plan, seed), time.time())
        if self._pending:
            pending, self._pending = self._pending, []
            self._append(pending)

    def _retire_old_run(self) -> None:
        """Cancel the run of an earlier session; its outcomes are collected by the next."""
        from pandaflow.client import Run

        state = self._store.study(self.name)
        if state is None or state.run is None:
            return
        old = Run(state.run, self._store)
        if not old._driven():
            old.cancel()

    def use_store(self, store: Any) -> None:
        """Keep the study in another store from here on."""
        self.close()
        self._store_given, self._book = store, None
        self._opened = store if isinstance(store, SqlStore) else None

    # --- starting points ----------------------------------------------------------------

    def enqueue(self, params: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Have points tried before the optimizer's own."""
        points = [params] if isinstance(params, Mapping) else list(params)
        self._append([("queue", {"p": self._parsed(point)}) for point in points])

    def warm_start(self, source: Any) -> int:
        """Tell the optimizer what is known already; returns how many trials fitted the space.

        Parameters
        ----------
        source : Study, optuna.Study, or sequence of (params, value)
        """
        from pandaflow.hpo.exports import known_trials

        adds = known_trials(source, self._space, self.directions)
        self._append([("add", body) for body in adds])
        return len(adds)

    def _parsed(self, point: Mapping[str, Any]) -> Point:
        if self._space is None:
            raise WorkflowError(
                f"study {self.name!r}: give hpo.Study(..., space=space) before points are named"
            )
        return self._space.parse(point)

    def _append(self, records: Iterable[tuple[str, dict[str, Any]]]) -> None:
        listed = list(records)
        if self._store.study(self.name) is None:
            self._pending += listed
            return
        self.close()
        writer = self._store.write_study(self.name, this_process(), _LEASE_S)
        try:
            first = len(self.book.trials)
            numbers = iter(range(first, first + len(listed)))
            writer.append(
                [(time.time(), k, next(numbers) if k == "add" else None, b) for k, b in listed]
            )
        finally:
            writer.release()

    # --- by hand ------------------------------------------------------------------------

    def ask(self) -> AskedTrial:
        """Return the next trial, to be evaluated by the caller and told with :meth:`tell`."""
        return self.ask_many(1)[0]

    def ask_many(self, n: int) -> list[AskedTrial]:
        """Return the next ``n`` trials; they are in the log when this returns."""
        return self._by_hand().ask(n)

    def tell(self, trial: AskedTrial | int, value: Any = None, *, state: str = "complete") -> bool:
        """Tell what came of a trial; False if it was told before, which changes nothing.

        Parameters
        ----------
        trial : trial or its number
        value : number, sequence of numbers, or Result
        state : {'complete', 'pruned', 'failed'}
        """
        return self.tell_many([(trial, value, state)])[0]

    def tell_many(self, results: Iterable[tuple[Any, ...]]) -> list[bool]:
        """Tell several, each (trial, value) or (trial, value, state), in one transaction."""
        return self._by_hand().tell(list(results))

    def _by_hand(self) -> Manual:
        if self._manual is None:
            if self._space is None:
                raise WorkflowError(f"study {self.name!r}: give hpo.Study(..., space=space) to ask")
            own = {key: value for key, value in self._settings.items() if key in _OWN}
            plan = study_plan(self.name, self._space, Settings(**{"n_trials": 10**9, **own}))
            # Who asks by hand repeats by hand.
            plan = replace(plan, terms=replace(plan.terms, n_trials=None, repeats=1))
            self._ensure(plan)
            folder = f"{places.results_root(self._store)}/studies"
            self._manual = Manual(StudyDriver(self._store, plan, folder))
        return self._manual

    def close(self) -> None:
        """Give the study back, after asking and telling by hand. May be called twice."""
        if self._manual is not None:
            self._manual.close()
            self._manual = None

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def delete(self) -> None:
        """Remove the study and its log from the store."""
        self.close()
        self._store.delete_study(self.name)
        self._book = None


#: Keywords that are settings and not arguments of the objective.
_OWN = frozenset(Settings.__dataclass_fields__)


def _with_retries(resources: Any, retries: int) -> Any:
    if callable(resources):
        return lambda params: {"retries": retries, **resources(params)}
    return {"retries": retries, **(resources or {})}


def _as_workflow(plan: StudyPlan, objective: Any, resources: Any, fixed: Mapping[str, Any]) -> Any:
    """Return the workflow of one search, whose result is the best trial."""
    from pandaflow.authoring.trace import active_trace
    from pandaflow.workflows import WorkflowFunction

    def body() -> Any:
        trace = active_trace("hpo.Study.optimize")
        return place(trace, plan, objective, resources=resources, fixed=fixed).best

    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in plan.name)
    return WorkflowFunction(body, name)()
