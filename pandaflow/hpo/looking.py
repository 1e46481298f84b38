"""Looking at a study: what the log says, as values, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pandaflow import places
from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.book import Book, TrialRecord
from pandaflow.hpo.space import AnySpace
from pandaflow.store.sql import SqlStore

if TYPE_CHECKING:
    import pandas

    from pandaflow.client import Run


class Looking:
    """A study as far as it can be looked at; see :class:`pandaflow.hpo.Study` for the rest."""

    name: str
    _space: AnySpace | None
    _settings: dict[str, Any]

    def __init__(self, store: Any) -> None:
        self._store_given = store
        self._opened: SqlStore | None = store if isinstance(store, SqlStore) else None
        self._book: Book | None = None
        #: The notebook cell whose output shows the study already.
        self._shown_in: int | None = None

    @property
    def store(self) -> Any:
        """What was given as the store: a URL, a store, or None for the default."""
        return self._store_given

    @property
    def _store(self) -> SqlStore:
        if self._opened is None:
            self._opened = places.open_database(self._store_given)
        return self._opened

    @property
    def space(self) -> AnySpace | None:
        """The search space, if this process knows it."""
        return self._space

    @property
    def directions(self) -> tuple[str, ...]:
        """``minimize`` or ``maximize`` for each objective."""
        state = self._store.study(self.name)
        if state is not None:
            return tuple(state.head["directions"])
        given = self._settings
        return tuple(given.get("directions") or (given.get("direction") or "minimize",))

    @property
    def book(self) -> Book:
        """The study as the log has it now."""
        if self._book is None:
            self._book = Book(self.directions)
        if self._store.study(self.name) is not None:
            for record in self._store.study_log(self.name, self._book.seq):
                self._book.apply(record.seq, record.at, record.kind, record.trial, record.body)
        return self._book

    @property
    def trials(self) -> list[TrialRecord]:
        """All trials, by number."""
        return list(self.book.trials)

    @property
    def status(self) -> str:
        """``running``, ``stopped``, ``done``, ``failed``, or ``new``."""
        state = self._store.study(self.name)
        return "new" if state is None else state.status

    @property
    def best_trial(self) -> TrialRecord:
        """The best feasible trial.

        Raises
        ------
        WorkflowError
            No trial has a value yet, or there are several objectives.
        """
        book = self.book
        if len(book.directions) > 1:
            raise WorkflowError(
                f"study {self.name!r} has {len(book.directions)} objectives: look at best_trials"
            )
        if book.best is None:
            raise WorkflowError(f"study {self.name!r} has no trial with a value yet")
        return book.best

    @property
    def best_value(self) -> float:
        """The value of the best trial."""
        return self.best_trial.values[0]

    @property
    def best_params(self) -> dict[str, Any]:
        """The parameters of the best trial, as the objective got them."""
        return self.params_of(self.best_trial)

    @property
    def best_trials(self) -> list[TrialRecord]:
        """The trials that no other beats in all objectives: the Pareto set."""
        return self.book.front()

    def params_of(self, trial: TrialRecord | int) -> dict[str, Any]:
        """Return what the objective was called with in a trial."""
        record = self.book.trials[trial] if isinstance(trial, int) else trial
        return dict(record.point) if self._space is None else self._space.arguments(record.point)

    @property
    def notes(self) -> list[str]:
        """What a person should know: an optimizer that failed, a resume that is not exact."""
        return [text for _, text in self.book.notes]

    def trials_dataframe(self) -> pandas.DataFrame:
        """Return the trials as a table, one row each, columns as Optuna names them."""
        from pandaflow.hpo.exports import dataframe

        return dataframe(self.book)

    def to_optuna(self, storage: Any = None) -> Any:
        """Return the study as an ``optuna.Study``, for its plots, dashboard and tools.

        Parameters
        ----------
        storage : str or Optuna storage, optional
            Default: memory. ``"sqlite:///optuna.db"`` or a journal for optuna-dashboard.
        """
        from pandaflow.hpo.exports import to_optuna

        return to_optuna(self.name, self._known_space(), self.book, storage)

    def _known_space(self) -> AnySpace:
        """Return the search space, or what the log tells of it."""
        from pandaflow.hpo.exports import recorded_space

        state = self._store.study(self.name)
        if self._space is not None or state is None:
            return self._space if self._space is not None else recorded_space({}, self.book)
        return recorded_space(state.head["space"], self.book)

    def verify(self, last: int = 20) -> Any:
        """Ask again for the last points of the log, and tell whether they are the same.

        Returns
        -------
        Verification
            True where a study that is resumed now goes on as if it had never stopped; otherwise
            it says why not.
        """
        from pandaflow.hpo.verify import verify

        return verify(self._store, self.name, self._space, self._settings, last)

    # --- pictures -----------------------------------------------------------------------

    @property
    def run(self) -> Run | None:
        """The run that evaluates the trials, or did last."""
        from pandaflow.client import Run

        state = self._store.study(self.name)
        return None if state is None or state.run is None else Run(state.run, self._store)

    def plot_history(self) -> Any:
        """Draw values and the best so far, by trial."""
        return self._plot("optimization_history")

    def plot_parallel(self, params: Sequence[str] | None = None) -> Any:
        """Draw each trial as a line across its parameters."""
        return self._plot("parallel_coordinate", params=params)

    def plot_importances(self) -> Any:
        """Draw how much each parameter matters."""
        return self._plot("param_importances")

    def plot_slice(self, params: Sequence[str] | None = None) -> Any:
        """Draw the value against each parameter."""
        return self._plot("slice", params=params)

    def plot_contour(self, params: Sequence[str] | None = None) -> Any:
        """Draw the value over pairs of parameters."""
        return self._plot("contour", params=params)

    def plot_pareto(self, names: Sequence[str] | None = None) -> Any:
        """Draw the objectives against each other, and the front."""
        return self._plot("pareto_front", target_names=names)

    def plot_intermediate(self) -> Any:
        """Draw the reports of each trial by step."""
        return self._plot("intermediate_values")

    def plot_timeline(self) -> Any:
        """Draw trials over time, by state."""
        return self._plot("timeline")

    def _plot(self, kind: str, **options: Any) -> Any:
        from pandaflow.hpo.plots import plot

        return plot(self, kind, **options)

    def __len__(self) -> int:
        return len(self.book.trials)

    def __iter__(self) -> Iterator[TrialRecord]:
        return iter(self.book.trials)

    def __repr__(self) -> str:
        from pandaflow.hpo.watching import study_line

        return f"<study {study_line(self)}>"

    def _repr_html_(self) -> str:
        from pandaflow.hpo.plots import study_html
        from pandaflow.hpo.watching import cell

        shown = self._shown_in is not None and self._shown_in == cell()
        return "" if shown else study_html(self)
