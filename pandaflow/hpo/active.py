"""Active learning: label what the model would learn most from, round by round.

A round is a *choice* (one job: score what is unlabelled, take the best), the *labels* (one job an
item) and the *training* (one job). Rounds are iterations of ``pf.loop``, so all of it is durable.
What passes from round to round is an :class:`ActiveState`: it holds what was labelled, never the
pool. The pool is an argument of the choosing task alone.
"""

from __future__ import annotations

import difflib
import heapq
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from pandaflow.authoring.collections import Collection, SourceCollection, Whole
from pandaflow.authoring.shapes import loop, scatter
from pandaflow.authoring.sources import value_of
from pandaflow.authoring.tasks import Task
from pandaflow.authoring.trace import ACTIVE
from pandaflow.core.errors import WorkflowError
from pandaflow.executors.outcome import Skip
from pandaflow.options import Options, name_of
from pandaflow.workflows import WorkflowFunction

Score: TypeAlias = Callable[[Any, Any], Any]

#: One label that came is enough for a round to go on: the least goal above no job at all.
_ANY = 1e-6
_GONE = "its job failed"


@dataclass(frozen=True, slots=True)
class ActiveState:
    """Where a campaign stands after a round.

    ``indices``, ``items``, ``labels``, ``scores`` and ``rounds`` go together: entry ``k`` is the
    ``k``-th label that was made.

    Attributes
    ----------
    round : int
        Rounds that have ended.
    indices : tuple of int
        Places of the labelled items in the pool.
    items, labels : tuple
        The labelled items and their labels.
    scores : tuple of float
        What an item scored when it was chosen; NaN where chance chose.
    rounds : tuple of int
        The round, counted from 0, in which a label was made.
    dropped : mapping of int to str
        Place in the pool of each item that got no label, and why. It is not asked for again.
    left : int
        Items of the pool that were not chosen yet.
    model : object
        What ``train`` returned last; None before.
    """

    round: int = 0
    indices: tuple[int, ...] = ()
    items: tuple[Any, ...] = ()
    labels: tuple[Any, ...] = ()
    scores: tuple[float, ...] = ()
    rounds: tuple[int, ...] = ()
    dropped: Mapping[int, str] = field(default_factory=dict)
    left: int = 0
    model: Any = None

    def __repr__(self) -> str:
        return (
            f"<ActiveState after round {self.round}: {len(self.labels)} labels, "
            f"{len(self.dropped)} dropped, {self.left} left>"
        )


def active_learning(  # noqa: PLR0913 - each is one of the method's own knobs, by keyword
    *,
    label: Callable[[Any], Any],
    train: Callable[[Any, Any], Any],
    pool: Any,
    batch: int,
    acquire: str | Callable[[Any, Any], Any] = "uncertainty",
    until: int | Callable[[ActiveState], Any] | None = None,
    initial: int | None = None,
    max_rounds: int = 100,
    seed: int = 0,
) -> Any:
    """Label a pool little by little: what to label next follows from the model so far.

    The first round labels ``initial`` items chosen by chance and trains. Each later round labels
    the ``batch`` items that ``acquire`` scores highest, and trains again on all labels.

    Parameters
    ----------
    label : task or callable
        Item -> label; the expensive part. One job an item, with the task's own options. An item
        whose job fails for good, or raises ``pf.Skip``, is dropped and not asked for again;
        the round goes on with the others. If all of a round's label jobs *fail*, so does the
        run, as it does when fewer finish than a ``goal`` of the task's own asks for.
    train : task or callable
        (items, labels) -> model, any object but None. Items come as an array if the pool is one,
        else as a list; labels as a list. It may raise ``pf.Skip``, as long as these labels
        are too few (of one class only, say): the model stays as it was, and while there is none,
        chance chooses.
    pool : list, array, dataset or output of tasks
        What may be labelled. Of the outputs of tasks all must be there before the first round.
    batch : int
        Labels a round.
    acquire : {'uncertainty', 'margin', 'entropy', 'random'} or task or callable
        (model, candidates) -> scores, one for each candidate; the highest are wanted. Candidates
        are all items not chosen before, as an array or a list, as above. The first three names
        need models with ``predict_proba``. Equal scores are put in order by chance.
    until : int or callable, optional
        A number of labels, met exactly; or (:class:`ActiveState`) -> bool, run as a job after each
        round. The campaign ends in any case when the pool is used up or after ``max_rounds``.
    initial : int, optional
        Labels of the first round; default: ``batch``.
    max_rounds : int
        Rounds at most, the first included.
    seed : int
        All that is random here follows from it: with deterministic tasks the same items are
        labelled in each run, on whichever executor.

    Returns
    -------
    Collection or Workflow
        Inside a workflow a collection with one value, the last :class:`ActiveState`; elsewhere
        a workflow with that result, to be run.

    Raises
    ------
    WorkflowError
        An argument is not what it should be.

    Notes
    -----
    Pool-based sampling with uncertainty, margin or entropy as in B. Settles, *Active Learning
    Literature Survey*, University of Wisconsin-Madison TR 1648 (2009), sections 2.3 and 3.1.

    Examples
    --------
    >>> from pandaflow.hpo.active import active_learning
    >>> campaign = active_learning(
    ...     label=lambda x: x > 6,
    ...     train=lambda xs, labels: sum(xs) / len(xs),
    ...     acquire=lambda mean, xs: [-abs(x - mean) for x in xs],
    ...     pool=range(10),
    ...     batch=2,
    ...     until=6,
    ... )
    >>> campaign.name
    'active_learning'
    """
    given = {name: value for name, value in locals().items() if name != "pool"}
    source = _pool(pool)
    if ACTIVE.get() is None:
        return WorkflowFunction(active_learning)(pool=source, **given)
    plan = _plan(source, batch, until, initial, max_rounds, seed)
    choosing, labelling, learning = _chooser(acquire), _labeller(label), _learner(train)
    listed = isinstance(source, Collection) and not source.single
    candidates = cast(Collection, source).all() if listed else source

    def active_round(state: Collection) -> Any:
        picks = choosing(state, candidates, plan)
        labels = labelling(scatter(picks))
        return learning(state, picks, labels.all())

    return loop(active_round, value_of(ActiveState()), until=_end(until), max_iterations=max_rounds)


# --- scores ------------------------------------------------------------------------------


def _probabilities(model: Any, candidates: Any) -> Any:
    """Return P(class) of each candidate, shape (candidates, classes)."""
    import numpy as np

    if not hasattr(model, "predict_proba"):
        raise TypeError(
            f"a {type(model).__name__} has no predict_proba, which this acquisition needs; "
            "give acquire= a function of (model, candidates)"
        )
    return np.asarray(model.predict_proba(candidates), dtype=float)


def _uncertainty(model: Any, candidates: Any) -> Any:
    """Score by one minus the probability of the likeliest class."""
    return 1 - _probabilities(model, candidates).max(axis=1)


def _margin(model: Any, candidates: Any) -> Any:
    """Score by how close the two likeliest classes are: 0 for a tie, -1 for certainty."""
    import numpy as np

    ordered = np.sort(_probabilities(model, candidates), axis=1)
    second = ordered[:, -2] if ordered.shape[1] > 1 else 0.0
    return second - ordered[:, -1]


def _entropy(model: Any, candidates: Any) -> Any:
    """Score by the entropy of the class probabilities, in nats."""
    import numpy as np

    p = _probabilities(model, candidates)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)


#: None: chance draws, without asking the model.
_SCORES: Mapping[str, Score | None] = {
    "uncertainty": _uncertainty,
    "margin": _margin,
    "entropy": _entropy,
    "random": None,
}


def _named(acquire: str) -> Score | None:
    if acquire not in _SCORES:
        close = difflib.get_close_matches(acquire, _SCORES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_SCORES)}"
        raise WorkflowError(f"active_learning: unknown acquire={acquire!r}; {hint}")
    return _SCORES[acquire]


# --- what is checked when the workflow is written ---------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """How many items each round takes; ``target``: labels after which to stop, if told so."""

    batch: int
    initial: int
    seed: int
    target: int | None

    def wanted(self, state: ActiveState) -> int:
        """Return how many items the next round is to label."""
        number = self.batch if state.round else self.initial
        return number if self.target is None else min(number, self.target - len(state.labels))

    def dice(self, state: ActiveState) -> random.Random:
        """Return the random numbers of the next round: a restart does not shift them."""
        return random.Random(f"{self.seed}/{state.round}")


def _plan(pool: Any, batch: Any, until: Any, initial: Any, max_rounds: Any, seed: Any) -> _Plan:
    size = len(pool) if isinstance(pool, _Pool) else None if pool.single else pool.length
    counts = {"batch": batch, "initial": batch if initial is None else initial}
    target = until if isinstance(until, int) else None
    if target is not None:
        counts["until"] = target
    for name, value in counts.items():
        _whole(name, value)
        if size is not None and value > size:
            raise WorkflowError(f"active_learning: {name}={value} is more than the pool's {size}")
    _whole("max_rounds", max_rounds)
    if type(seed) is not int:
        raise WorkflowError(f"active_learning: seed={seed!r} is not a whole number")
    if target is None and until is not None:
        _task("until", until, 1)
    return _Plan(batch, counts["initial"], seed, target)


def _whole(name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise WorkflowError(f"active_learning: {name}={value!r} is not a whole number above 0")


def _task(role: str, given: Any, arguments: int) -> Task:
    """Return what the user gave for a role as a task of so many arguments."""
    if isinstance(given, Task):
        task = given
    elif callable(given) and not isinstance(given, WorkflowFunction):
        name = name_of(given)
        task = Task(given, Options(name=role if name == "function" else name))
    else:
        raise WorkflowError(f"active_learning: {role}={given!r} is neither a task nor a function")
    if task.kind != "function" or task._options.split.given:
        raise WorkflowError(
            f"active_learning: {role}={task!r} must be a function without a split rule: "
            "what one job gets is settled"
        )
    try:
        task.bind((None,) * arguments, {})
    except WorkflowError as error:
        raise WorkflowError(
            f"active_learning: {role} gets {arguments} argument(s): {error}"
        ) from None
    return task


# --- the pool ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pool:
    """A pool that is known when the workflow is written.

    Within the payload it is stored once a run and sent once to each worker, and reading the
    call's arguments does not look into it.
    """

    items: Any

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"<pool of {len(self)} items>"


def _pool(given: Any) -> _Pool | Collection:
    """Read the argument ``pool``."""
    if isinstance(given, _Pool):
        return given
    if isinstance(given, Whole):
        given = given.of
    if isinstance(given, SourceCollection) and given.spec.kind != "stream":
        given = given.spec.files or given.items
    if isinstance(given, Collection):
        return given
    if isinstance(given, Mapping | set | frozenset | str | bytes) or hasattr(given, "iloc"):
        raise WorkflowError(
            f"active_learning: pool is a {type(given).__name__}; give a list or an array of items"
        )
    if not (isinstance(given, range) or (_is_array(given) and given.ndim)):
        try:
            given = list(given)
        except TypeError:
            raise WorkflowError(f"active_learning: pool={given!r} has no items") from None
    if not len(given):
        raise WorkflowError("active_learning: the pool is empty")
    return _Pool(given)


def _is_array(value: Any) -> bool:
    """Whether it is a NumPy array; who has not imported NumPy has none."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


# --- the three tasks of a round ----------------------------------------------------------


class Picks(list[tuple[int, Any]]):
    """(place in the pool, item) of what a round labels, with what else is known of the choice.

    A list, as its items are scattered to the label jobs. The scores stay behind: what a label
    job gets, and with it its key in the cache, depends on the item alone.
    """

    scores: Sequence[float] = ()
    left: int = 0
    array: bool = False


def _chooser(acquire: Any) -> Task:
    """Make the task (state, pool, plan) -> :class:`Picks`."""
    if isinstance(acquire, str):
        score, options = _named(acquire), Options(name=acquire)
    else:
        task = _task("acquire", acquire, 2)
        score, options = task.function, task._options

    def choosing(state: ActiveState, pool: Any, plan: _Plan) -> Picks:
        return _choose(state, pool.items if isinstance(pool, _Pool) else pool, plan, score)

    return Task(choosing, options)


def _choose(state: ActiveState, pool: Any, plan: _Plan, score: Score | None) -> Picks:
    """Choose what the next round labels; without ``score`` by chance."""
    known = {*state.indices, *state.dropped}
    free = [index for index in range(len(pool)) if index not in known]
    wanted, dice = min(plan.wanted(state), len(free)), plan.dice(state)
    if score is None or state.model is None:
        best = [(float("nan"), index) for index in dice.sample(free, wanted)]
    else:
        candidates = pool[free] if _is_array(pool) else [pool[index] for index in free]
        best = _best(_checked(score(state.model, candidates), len(free)), free, wanted, dice)
    picks = Picks((index, pool[index]) for _, index in best)
    picks.scores = [value for value, _ in best]
    picks.left, picks.array = len(free) - wanted, _is_array(pool)
    return picks


def _checked(scores: Any, n: int) -> list[float]:
    """Return the scores as floats."""
    listed = list(map(float, scores.tolist() if _is_array(scores) else scores))
    if len(listed) != n:
        raise ValueError(f"acquire returned {len(listed)} scores for {n} candidates")
    bad = sum(value != value for value in listed)
    if bad:
        raise ValueError(f"acquire returned NaN for {bad} of {n} candidates")
    return listed


def _best(
    scores: list[float], free: list[int], wanted: int, dice: random.Random
) -> list[tuple[float, int]]:
    """Return the highest (score, index); among equals chance decides, not the pool's order."""
    drawn = ((score, dice.random(), index) for score, index in zip(scores, free, strict=True))
    return [(score, index) for score, _, index in heapq.nlargest(wanted, drawn)]


@dataclass(frozen=True, slots=True)
class _Label:
    """What a label job gives; ``reason``: why there is no label."""

    index: int
    value: Any = None
    reason: str = ""


def _labeller(label: Any) -> Task:
    """Make the task (place, item) -> :class:`_Label`."""
    task = _task("label", label, 1)
    function = task.function

    def labelling(pick: tuple[int, Any]) -> _Label:
        index, item = pick
        try:
            return _Label(index, function(item))
        except Skip as skip:  # as a value: a round of which all are skipped goes on, too
            return _Label(index, reason=f"skipped: {skip}")

    goal = task._options.goal
    return Task(labelling, replace(task._options, goal=_ANY if goal == 1 else goal))


def _learner(train: Any) -> Task:
    """Make the task (state, picks, labels) -> the next state."""
    task = _task("train", train, 2)
    function = task.function

    def learning(state: ActiveState, picks: Picks, labels: list[_Label]) -> ActiveState:
        return _learned(state, picks, labels, function)

    return Task(learning, task._options)


def _learned(
    state: ActiveState,
    picks: Picks,
    labels: Sequence[_Label],
    train: Callable[[Any, Any], Any],
) -> ActiveState:
    """Return the state after a round."""
    came = {one.index: one for one in labels}
    none = {i: came[i].reason if i in came else _GONE for i, _ in picks}
    kept = [k for k, (index, _) in enumerate(picks) if not none[index]]
    chosen = [picks[k] for k in kept]
    new = replace(
        state,
        round=state.round + 1,
        indices=(*state.indices, *(index for index, _ in chosen)),
        items=(*state.items, *(item for _, item in chosen)),
        labels=(*state.labels, *(came[index].value for index, _ in chosen)),
        scores=(*state.scores, *(picks.scores[k] for k in kept)),
        rounds=(*state.rounds, *([state.round] * len(kept))),
        dropped={**state.dropped, **{i: why for i, why in none.items() if why}},
        left=picks.left,
    )
    return replace(new, model=_model(new, train, picks.array)) if kept else new


def _model(state: ActiveState, train: Callable[[Any, Any], Any], array: bool) -> Any:
    seen: Any = list(state.items)
    if array:
        import numpy as np

        seen = np.asarray(seen)
    try:
        model = train(seen, list(state.labels))
    except Skip:
        return state.model
    if model is None:
        raise TypeError("train returned None: it must return the model")
    return model


def _end(until: Any) -> Callable[[ActiveState], bool]:
    """Return the condition that ends the loop."""
    test = getattr(until, "function", until)

    def ended(state: ActiveState) -> bool:
        if not state.left or test is None:
            return not state.left
        return len(state.labels) >= test if isinstance(test, int) else bool(test(state))

    return ended
