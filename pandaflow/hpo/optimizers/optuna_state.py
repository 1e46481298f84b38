"""An Optuna study in memory that follows the events of ours, and comes back from our log.

Samplers and pruners keep their state in three places: the trials, attributes that they set on
trials and on the study, and a few numbers within the pruner. The trials are in our log anyhow;
what changed of the rest goes into the memo of the next ask or tell. Reports carry no memo, so
those after the last ask or tell are shown to the pruner again on resume.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import cloudpickle

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.optimizers.optuna_pruners import (
    make_pruner,
    pruner_state,
    set_pruner_state,
    unknown_pruner,
)
from pandaflow.hpo.optimizers.optuna_trials import (
    STUDY_NAME,
    frozen,
    kept,
    of_pruner,
    packed,
    silence,
    unpacked,
)
from pandaflow.hpo.port import AskEntry, Brief, Entry, Memo, ReportEntry, TellEntry, Told
from pandaflow.hpo.space import Point

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial


class Encode(Protocol):
    """Turns a point into Optuna's params and distributions; None if it does not fit."""

    def __call__(self, point: Point, number: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return params and distributions."""
        ...


def _no_params(point: Point, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    del point, number
    return {}, {}


@dataclass(slots=True)
class _Row:
    """What the log says about a trial."""

    point: Point
    attrs: dict[str, Any] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)
    told: Told | None = None


class Mirror:
    """An Optuna study behind our trial numbers.

    Parameters
    ----------
    brief : Brief
        Directions, seed and pruner.
    sampler : optuna.samplers.BaseSampler, optional
        Whoever draws; without one, trials have no parameters here.
    encode : callable
        Turns points into Optuna's parameters.
    tag : str
        Names the space and the sampler. What a sampler kept under another tag is void.
    """

    def __init__(
        self,
        brief: Brief,
        sampler: BaseSampler | None = None,
        encode: Encode = _no_params,
        tag: str = "",
    ) -> None:
        import optuna

        silence()
        self.storage: Any = optuna.storages.InMemoryStorage()
        # Hyperband hashes the name of the study to sort trials into brackets.
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=f"{STUDY_NAME}{brief.seed}",
            directions=brief.directions,
            sampler=sampler or optuna.samplers.RandomSampler(seed=0),
            pruner=make_pruner(brief.pruner),
        )
        # Samplers that went through all points call stop(), which raises outside optimize().
        self.study.stop = _go_on  # type: ignore[method-assign]
        self._encode = encode
        self._tag = tag
        self._study_id = self.storage.get_study_id_from_name(self.study.study_name)
        self._single = len(brief.directions) == 1
        self._worst = math.inf if brief.directions[0] == "minimize" else -math.inf
        self._ids: dict[int, int] = {}
        self._live: dict[int, Trial | None] = {}
        self._left_out: set[int] = set()
        self._changed: set[int] = set()
        self._attrs: dict[int, dict[str, Any]] = {}
        self._study_attrs: dict[str, Any] = {}
        self._pruner_state: dict[str, int] = {}
        self._written_tag = ""

    # --- events ---

    def ask(self, number: int, distributions: dict[str, Any]) -> Trial:
        """Start a trial; Optuna chooses these parameters at once, and others when asked."""
        self._check_new(number)
        trial = self.study.ask(distributions)
        self._ids[number] = trial.number
        self._live[number] = trial
        return trial

    def open(self, number: int, point: Point | None = None) -> None:
        """Start a trial with given parameters."""
        self._check_new(number)
        row = _Row(point or {}, attrs=self.adopted_attrs())
        if self._add(number, row):
            self._live[number] = None

    def tell(self, told: Told) -> None:
        """End a trial, or add one that was never started here. A second tell is ignored."""
        if told.number in self._live:
            self._finish(told)
        elif told.number in self._ids or told.number in self._left_out:
            return
        elif told.point is None:
            raise WorkflowError(f"trial {told.number} was never asked for, and has no point")
        else:
            self._add(told.number, _Row(told.point, told=told))

    def report(self, number: int, step: int, value: float) -> bool:
        """Take in an intermediate value and return whether to prune.

        Of several values for a step the first counts; NaN counts as the worst number. Several
        objectives, a negative step or a trial that is not outstanding: nothing happens.
        """
        import numpy

        if number not in self._live or not self._single or step < 0:
            return False
        if step in self.storage.get_trial(self._ids[number]).intermediate_values:
            return False
        trial = self._trial(number)
        trial.report(self._shown(value), step)
        self._changed.add(number)
        with numpy.errstate(invalid="ignore"):  # a percentile of reports that are infinite
            return bool(trial.should_prune())

    def _shown(self, value: float) -> float:
        return self._worst if math.isnan(value) else value

    def _finish(self, told: Told) -> None:
        from optuna.trial import TrialState as State

        if told.state != "failed":
            for k, value in enumerate(told.constraints):
                self._trial(told.number).set_constraint(f"c{k}", value)
        ours = self._ids[told.number]
        del self._live[told.number]
        if told.state == "complete":
            self.study.tell(ours, list(told.values))
        else:
            self.study.tell(ours, state=State.PRUNED if told.state == "pruned" else State.FAIL)

    def _trial(self, number: int) -> Trial:
        import optuna

        trial = self._live[number]
        if trial is None:
            trial = self._live[number] = optuna.trial.Trial(self.study, self._ids[number])
        return trial

    def _check_new(self, number: int) -> None:
        if number in self._ids or number in self._left_out:
            raise WorkflowError(f"trial {number} is known already")

    def adopted_attrs(self) -> dict[str, Any]:
        """Return attributes without which a grid sampler stumbles over a trial not its own."""
        if type(self.study.sampler).__name__ != "GridSampler":
            return {}
        return {"grid_id": -1, "search_space": {}}

    # --- memos ---

    def memo(self, number: int) -> dict[str, Any]:
        """Return what changed since the last memo, JSON-ready; empty if nothing did."""
        out: dict[str, Any] = {}
        if self._tag != self._written_tag:
            out["tag"] = self._written_tag = self._tag
        trials = {str(n): new for n in sorted({number, *self._changed}) if (new := self._news(n))}
        self._changed.clear()
        if trials:
            out["trials"] = trials
        attrs = self.storage.get_study_system_attrs(self._study_id)
        if attrs is not self._study_attrs:  # the storage replaces the mapping at each change
            out["study"] = {k: v for k, v in attrs.items() if self._study_attrs.get(k) != v}
            self._study_attrs = attrs
        state = pruner_state(self.study.pruner)
        if state != self._pruner_state:
            out["pruner"] = self._pruner_state = state
        return out

    def _news(self, number: int) -> dict[str, Any]:
        if number not in self._ids:
            return {}
        trial = self.storage.get_trial(self._ids[number])
        if not trial.system_attrs:
            return {}
        attrs = kept(trial)
        known = self._attrs.get(number, {})
        news = {key: value for key, value in attrs.items() if known.get(key) != value}
        if number in self._live:
            self._attrs[number] = attrs
        else:
            self._attrs.pop(number, None)
        return packed(news)

    # --- resume ---

    def replay(self, entries: Sequence[Entry]) -> str:
        """Come to where the log ends; see :meth:`pandaflow.hpo.port.Optimizer.restore`."""
        tags = [k for k, e in enumerate(entries) if "tag" in _memo(e)]
        last_tag = str(_memo(entries[tags[-1]])["tag"]) if tags else self._written_tag
        same = not entries or last_tag == self._tag
        valid_from = (tags[-1] if tags else 0) if same else len(entries)
        ends = [k for k, e in enumerate(entries) if not isinstance(e, ReportEntry)]
        tail = ends[-1] + 1 if ends else 0
        rows: dict[int, _Row] = {}
        study_attrs: dict[str, Any] = {}
        for k, entry in enumerate(entries[:tail]):
            self._read(entry, rows)
            self._read_memo(_memo(entry), rows, study_attrs, valid=k >= valid_from)
        self._rebuild(rows, study_attrs)
        self._written_tag = last_tag
        for entry in entries[tail:]:
            if isinstance(entry, ReportEntry):
                self.report(entry.number, entry.step, entry.value)
        return self._why(same)

    def _read(self, entry: Entry, rows: dict[int, _Row]) -> None:
        if isinstance(entry, AskEntry):
            adopted = {} if entry.own else self.adopted_attrs()
            rows.setdefault(entry.number, _Row(entry.point, attrs=adopted))
        elif isinstance(entry, TellEntry):
            told = entry.told
            if told.number in rows:
                rows[told.number].told = rows[told.number].told or told
            elif told.point is not None:
                rows[told.number] = _Row(told.point, told=told)
        elif entry.number in rows and self._single and entry.step >= 0:
            row = rows[entry.number]
            if row.told is None:
                row.reports.setdefault(entry.step, self._shown(entry.value))

    def _read_memo(
        self, memo: Memo, rows: dict[int, _Row], study: dict[str, Any], *, valid: bool
    ) -> None:
        for number, attrs in memo.get("trials", {}).items():
            if int(number) in rows:
                theirs = unpacked(attrs)
                rows[int(number)].attrs.update(theirs if valid else of_pruner(theirs))
        if valid:
            study.update(memo.get("study", {}))
        self._pruner_state = dict(memo.get("pruner", self._pruner_state))

    def _rebuild(self, rows: Mapping[int, _Row], study_attrs: Mapping[str, Any]) -> None:
        for number, row in rows.items():
            self._add(number, row)
        for key, value in study_attrs.items():
            self.storage.set_study_system_attr(self._study_id, key, value)
        self._study_attrs = self.storage.get_study_system_attrs(self._study_id)
        set_pruner_state(self.study, self._pruner_state)

    def _add(self, number: int, row: _Row) -> bool:
        given = self._encode(row.point, number)
        if given is None:
            self._left_out.add(number)
            return False
        if "grid_id" in row.attrs and "search_space" not in row.attrs:
            row.attrs["search_space"] = getattr(self.study.sampler, "_search_space", {})
        trial = frozen(row.told, given, row.attrs, row.reports)
        self._ids[number] = len(self._ids)
        self.study.add_trial(trial)
        if row.told is None:
            self._live[number] = None
            self._attrs[number] = kept(trial)
        return True

    def _why(self, same: bool) -> str:
        if not same:
            left = len(self._left_out)
            rest = f"; {left} trials do not fit and are left out" if left else ""
            return f"the space or the sampler is another one than before{rest}"
        return unknown_pruner(self.study.pruner)

    # --- snapshots ---

    def dump(self) -> bytes:
        """Return the state as bytes."""
        left = ("study", "_encode", "_live")
        state = {key: value for key, value in vars(self).items() if key not in left}
        parts = (state, list(self._live), self.study.pruner, self.study.sampler)
        dumped: bytes = cloudpickle.dumps(parts)
        return dumped

    def load(self, dumped: bytes) -> None:
        """Take over a state that :meth:`dump` gave."""
        import optuna

        state, live, pruner, sampler = pickle.loads(dumped)
        vars(self).update(state)
        self._live = dict.fromkeys(live)
        self.study = optuna.load_study(
            study_name=self.study.study_name, storage=self.storage, sampler=sampler, pruner=pruner
        )
        self.study.stop = _go_on  # type: ignore[method-assign]

    def follow(self, entries: Sequence[Entry]) -> None:
        """Take in the events after a snapshot one by one, as if they happened now."""
        for entry in entries:
            if isinstance(entry, ReportEntry):
                self.report(entry.number, entry.step, entry.value)
                continue
            if isinstance(entry, AskEntry):
                self.open(entry.number, entry.point)
            else:
                self.tell(entry.told)
            self.memo(entry.number if isinstance(entry, AskEntry) else entry.told.number)


def _memo(entry: Entry) -> Memo:
    return {} if isinstance(entry, ReportEntry) else entry.memo


def _go_on() -> None:
    """Do nothing: when a study stops is not the sampler's to say."""
