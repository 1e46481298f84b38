"""A study in other people's forms: tables, CSV, JSON, Optuna studies; and theirs as trials."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.book import Book, TrialRecord
from pandaflow.hpo.dimensions import Choice, Float, Int, choice, integer, real
from pandaflow.hpo.space import AnySpace, Draw, FunctionSpace, Point

if TYPE_CHECKING:
    import optuna
    import pandas

#: Our states as Optuna spells them.
STATES: Mapping[str, str] = {
    "running": "RUNNING",
    "complete": "COMPLETE",
    "pruned": "PRUNED",
    "failed": "FAIL",
}


# --- rows -------------------------------------------------------------------------------


def columns(book: Book) -> list[str]:
    """Return the names of the columns of :func:`rows`, in Optuna's order."""
    several = len(book.directions)
    values = ["value"] if several == 1 else [f"values_{k}" for k in range(several)]
    limits = max((len(trial.constraints) for trial in book.trials), default=0)
    return [
        "number",
        *values,
        *("datetime_start", "datetime_complete", "duration"),
        *(f"params_{name}" for name in _names(trial.point for trial in book.trials)),
        *(f"user_attrs_{name}" for name in _names(trial.attrs for trial in book.trials)),
        *(f"constraints_{k}" for k in range(limits)),
        *("state", "by", "why"),
    ]


def _names(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all keys, sorted: Optuna's order of columns."""
    return sorted({name for one in found for name in one})


def rows(book: Book) -> Iterator[dict[str, Any]]:
    """Yield each trial as a dict with some of :func:`columns`; times are seconds since 1970."""
    single = len(book.directions) == 1
    for trial in book.trials:
        yield {
            "number": trial.number,
            **_numbered("value" if single else "values", trial.values, single),
            **_times(trial),
            **{f"params_{name}": value for name, value in trial.point.items()},
            **{f"user_attrs_{name}": value for name, value in trial.attrs.items()},
            **_numbered("constraints", trial.constraints, False),
            "state": STATES[trial.state],
            "by": trial.by,
            "why": trial.why,
        }


def _numbered(stem: str, values: Sequence[float], single: bool) -> dict[str, float]:
    return {stem if single else f"{stem}_{k}": value for k, value in enumerate(values)}


def _times(trial: TrialRecord) -> dict[str, float]:
    found = {"datetime_start": trial.began} if trial.began else {}
    if trial.ended:
        found |= {"datetime_complete": trial.ended, "duration": trial.seconds}
    return found


def dataframe(book: Book) -> pandas.DataFrame:
    """Return the trials as a table with Optuna's columns, and ``by`` and ``why``.

    Parameters
    ----------
    book : Book
        The study.

    Returns
    -------
    pandas.DataFrame
        One row a trial. Times are local, durations ``timedelta64``; what a trial does not have
        is missing.

    Raises
    ------
    WorkflowError
        pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise WorkflowError(
            'a table of trials needs pandas: pip install "pandaflow[hpo]"'
        ) from None
    frame = pandas.DataFrame(list(rows(book)), columns=columns(book))
    for name in ("datetime_start", "datetime_complete"):
        frame[name] = pandas.to_datetime([_date(at) for at in frame[name]])
    frame["duration"] = pandas.to_timedelta(frame["duration"].astype("float64"), unit="s")
    return frame


def _date(at: float) -> datetime | None:
    """Return local time, as Optuna's tables have it."""
    return None if math.isnan(at) else datetime.fromtimestamp(at)


def csv_lines(book: Book) -> Iterator[str]:
    """Yield the trials as lines of CSV; times are ISO 8601 in local time, durations seconds."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(book), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows(book):
        for name in ("datetime_start", "datetime_complete"):
            if name in row:
                row[name] = datetime.fromtimestamp(row[name]).isoformat(sep=" ")
        writer.writerow(row)
        yield out.getvalue()
        out.seek(0)
        out.truncate()
    yield out.getvalue()


def trial_json(trial: TrialRecord) -> dict[str, Any]:
    """Return a trial as JSON-ready values; times are seconds since 1970."""
    return {
        "number": trial.number,
        "state": trial.state,
        "params": dict(trial.point),
        "values": list(trial.values),
        "constraints": list(trial.constraints),
        "attrs": dict(trial.attrs),
        "reports": [list(report) for report in trial.reports],
        "began": trial.began or None,
        "ended": trial.ended or None,
        "by": trial.by,
        "why": trial.why,
    }


# --- spaces of studies that were only read ----------------------------------------------


def recorded_space(description: Mapping[str, Any], book: Book) -> AnySpace:
    """Return a space for a study of which only the log is at hand.

    Each trial has the parameters it had. Ranges are those of the description; of a
    define-by-run space, which has none, they span what was tried.

    Parameters
    ----------
    description : mapping
        Of the study's head: what the space's ``describe`` returned.
    book : Book
        The study.
    """
    known = dict(_described(description)) if "function" not in description else {}
    tried: dict[str, list[Any]] = {}
    for trial in book.trials:
        for name, value in trial.point.items():
            tried.setdefault(name, []).append(value)
    spans = {n: known[n] if n in known else _span(values) for n, values in tried.items()}

    def again(trial: Draw) -> None:
        for name in book.trials[trial.number].point:
            _suggest(trial, name, spans[name])

    return FunctionSpace(again)


def _described(description: Mapping[str, Any]) -> Iterator[tuple[str, Float | Int | Choice]]:
    """Yield the parameters of a description, those of branches too."""
    for name, given in description.items():
        if given["type"] == "float":
            yield name, real(given["low"], given["high"], log=given["log"], step=given["step"])
        elif given["type"] == "int":
            yield name, integer(given["low"], given["high"], log=given["log"], step=given["step"])
        elif given["type"] != "fixed":
            yield name, choice(given["options"])
            for branch in given.get("branches", ()):
                yield from _described(branch)


def _span(values: Sequence[Any]) -> Float | Int | Choice:
    if all(type(value) is int for value in values):
        return integer(min(values), max(values))
    if all(type(value) in (int, float) for value in values):
        return real(min(values), max(values))
    return choice(list(dict.fromkeys(values)))


def _suggest(trial: Draw, name: str, known: Float | Int | Choice) -> None:
    if isinstance(known, Choice):
        trial.suggest_categorical(name, known.labels)
    elif isinstance(known, Int):
        trial.suggest_int(name, known.low, known.high, step=known.step, log=known.log)
    else:
        trial.suggest_float(name, known.low, known.high, step=known.step, log=known.log)


# --- Optuna -----------------------------------------------------------------------------


def to_optuna(name: str, space: AnySpace, book: Book, storage: Any = None) -> optuna.Study:
    """Return a study as an Optuna study, in memory or in a storage of Optuna's.

    In a storage that has the study already, trials that are missing there are added. Trials
    that still run are left out of storages: Optuna has no way to end them later.

    Parameters
    ----------
    name : str
        Of the study, there as here.
    space : Space or FunctionSpace
        What was searched.
    book : Book
        The study.
    storage : str or optuna.storages.BaseStorage, optional
        URL of a database, the file of a journal, or a storage object. Default: memory.

    Raises
    ------
    WorkflowError
        Optuna is missing, or the storage has another study of that name.
    """
    from pandaflow.hpo.optimizers.optuna_samplers import REMEDY, need
    from pandaflow.hpo.optimizers.optuna_studies import TrialRecord as Shown
    from pandaflow.hpo.optimizers.optuna_studies import study_of

    need("optuna", REMEDY, "an Optuna study")

    shown = [
        Shown(
            number=trial.number,
            state=trial.state,
            point=trial.point,
            values=trial.values,
            constraints=trial.constraints,
            reports=trial.reports,
            started=trial.began or None,
            ended=trial.ended or None,
            attrs={**trial.attrs, "by": trial.by, **({"why": trial.why} if trial.why else {})},
        )
        for trial in book.trials
    ]
    with _without_chatter():
        made = study_of(space, book.directions, shown, name=name)
        return made if storage is None else _kept(made, storage)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep Optuna from telling each study that it makes; its setting is put back."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _kept(made: optuna.Study, storage: Any) -> optuna.Study:
    import optuna

    kept = optuna.create_study(
        storage=_storage(storage),
        study_name=made.study_name,
        directions=made.directions,
        load_if_exists=True,
    )
    if kept.directions != made.directions:
        raise WorkflowError(f"the storage has a study {made.study_name!r} with other directions")
    there = [trial.user_attrs.get("number") for trial in kept.get_trials(deepcopy=False)]
    if None in there:
        raise WorkflowError(
            f"the storage has a study {made.study_name!r} that was not exported from here"
        )
    known = set(there)
    kept.add_trials(
        [
            trial
            for trial in made.get_trials(deepcopy=False)
            if trial.state.is_finished() and trial.user_attrs["number"] not in known
        ]
    )
    return kept


def _storage(given: Any) -> Any:
    """Return a storage; text that is no URL is the file of a journal."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if isinstance(given, str) and "://" not in given:
        return JournalStorage(JournalFileBackend(given))
    return given


# --- what is known from elsewhere -------------------------------------------------------


def known_trials(
    source: Any, space: AnySpace | None, directions: Sequence[str]
) -> list[dict[str, Any]]:
    """Return finished trials of a source as bodies of ``add`` records.

    Only trials with a finite value for each objective count; those whose point lies outside
    the space are left out.

    Parameters
    ----------
    source : Study, optuna.Study, or sequence of (params, value) or (params, values)
        Who has them.
    space : Space or FunctionSpace or None
        Of the study that is to learn of them.
    directions : sequence of str
        Of that study; a source that says its own must agree.

    Returns
    -------
    list of dict
        With the keys ``p, by, s, v, c``.

    Raises
    ------
    WorkflowError
        The source is none of these, or has other directions.
    """
    if space is None:
        raise WorkflowError("give hpo.Study(..., space=space) before warm_start")
    name, found = _read(source, tuple(directions))
    adds = []
    for params, values, limits in found:
        point = _fitting(space, params)
        if point is not None and len(values) == len(directions) and _finite(values):
            body = {"p": point, "by": name, "s": "complete", "v": list(values), "c": list(limits)}
            adds.append(body)
    return adds


_Found = Iterable[tuple[Mapping[str, Any], Sequence[float], Sequence[float]]]


def _read(source: Any, directions: tuple[str, ...]) -> tuple[str, _Found]:
    from pandaflow.hpo.study import Study

    if isinstance(source, Study):
        _check_directions(source.name, source.directions, directions)
        listed = [(t.point, t.values, t.constraints) for t in source.book.complete()]
        return source.name, listed
    if hasattr(source, "get_trials") and hasattr(source, "study_name"):
        return source.study_name, _from_optuna(source, directions)
    if isinstance(source, Iterable) and not isinstance(source, str | bytes | Mapping):
        return "given", [_pair(one) for one in source]
    raise WorkflowError(
        f"warm_start({type(source).__name__}): a study, an Optuna study, or (params, value) pairs"
    )


def _from_optuna(source: optuna.Study, directions: tuple[str, ...]) -> _Found:
    from pandaflow.hpo.optimizers.optuna_studies import entries_of

    theirs = tuple(direction.name.lower() for direction in source.directions)
    _check_directions(source.study_name, theirs, directions)
    told = entries_of(source)[1]
    return [(t.point or {}, t.values, t.constraints) for t in told if t.state == "complete"]


def _check_directions(name: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
    if theirs != ours:
        raise WorkflowError(
            f"study {name!r} has the directions {', '.join(theirs)}, not {', '.join(ours)}"
        )


def _pair(given: Any) -> tuple[Mapping[str, Any], Sequence[float], Sequence[float]]:
    try:
        params, value = given
        values = list(value) if isinstance(value, Iterable) else [value]
        if isinstance(params, Mapping):
            return params, [float(one) for one in values], ()
    except (TypeError, ValueError):
        pass  # told below
    raise WorkflowError(f"warm_start: {given!r} is not (params, value)")


def _finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))


def _fitting(space: AnySpace, params: Mapping[str, Any]) -> Point | None:
    """Return params as a point of the space; None if it has no such point."""
    try:
        return space.parse(params)
    except WorkflowError:
        return None
