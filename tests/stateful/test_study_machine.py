"""Studies that crash at random: no trial is lost, asked twice or told twice.

Engine and book stand between a real seeded design and jobs that end in any order, twice, or not
at all. A crash throws away everything but the log, and with it answers and outcomes that were on
their way.
"""

from __future__ import annotations

from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pandaflow import hpo
from pandaflow.hpo.asking import perform
from pandaflow.hpo.book import entry_of
from pandaflow.hpo.engine import Tell, Terms
from pandaflow.hpo.port import Brief
from tests.unit.hpo.sitting import Record, Sitting, replayed, value_of

SPACE = hpo.Space(x=hpo.float(-1, 1), n=hpo.int(0, 9), kind=["a", "b"])


class Designed(Sitting):
    """A session whose optimizer is a real design, restored from the log."""

    def __init__(self, terms: Terms, seed: int, log: list[Record], *, lazy: bool) -> None:
        super().__init__(terms, log, lazy=lazy)
        brief = Brief(("minimize",), seed, terms.outstanding, terms.n_trials)
        self.design = hpo.random(seed=seed).build(SPACE, brief)
        entries = [entry_of(kind, trial, body) for _, _, kind, trial, body in log]
        assert self.design.restore([entry for entry in entries if entry is not None]) == ""

    def answer(self) -> None:
        answer = perform(self.design, self.engine.requests[0])
        self.work(self.engine.answered(answer) or self.engine.settled(0.0))


class StudyMachine(RuleBasedStateMachine):
    """The model: which trials exist, and the first outcome that each was given."""

    @initialize(
        n=st.integers(1, 12),
        outstanding=st.integers(1, 5),
        repeats=st.sampled_from([1, 1, 1, 2]),
        seed=st.integers(0, 2**63 - 1),
    )
    def set_up(self, n: int, outstanding: int, repeats: int, seed: int) -> None:
        self.terms = Terms(n_trials=n, outstanding=outstanding, repeats=repeats, max_failed=1.0)
        self.seed = seed
        self.first: dict[int, tuple[str, tuple[float, ...]]] = {}
        self.points: dict[int, Any] = {}
        self.parts: dict[int, set[int]] = {}
        self.told: set[int] = set()
        self.crashes = 0
        self.study = Designed(self.terms, seed, [], lazy=True).begin()

    # --- what happens -------------------------------------------------------------------

    @precondition(lambda self: self.study.engine.requests)
    @rule(count=st.integers(1, 4))
    def optimizer_answers(self, count: int) -> None:
        for _ in range(min(count, len(self.study.engine.requests))):
            self.study.answer()

    @precondition(lambda self: self._open())
    @rule(data=st.data(), failed=st.integers(0, 5))
    def job_ends(self, data: st.DataObject, failed: int) -> None:
        number = data.draw(st.sampled_from(self._open()))
        have = self.parts.setdefault(number, set())
        repeat = min(set(range(self.terms.repeats)) - have)
        have.add(repeat)
        last = len(have) == self.terms.repeats
        if failed == 0:
            self.first[number] = ("failed", ())
            self.study.fail(number, r=repeat)
        else:
            if last:
                self.first[number] = ("complete", (value_of(number),))
            self.study.end(number, r=repeat)

    @precondition(lambda self: self.first)
    @rule(data=st.data(), value=st.floats(-5, 5), failed=st.booleans())
    def outcome_comes_again(self, data: st.DataObject, value: float, failed: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.first)))
        self.study.fail(number) if failed else self.study.end(number, value)

    @rule()
    def clock_ticks(self) -> None:
        self.study.tick(1.0)

    @precondition(lambda self: self.crashes < 4)
    @rule()
    def driver_dies(self) -> None:
        """Keep the log only; jobs whose outcome was not written are done anew."""
        self.crashes += 1
        self.study = Designed(self.terms, self.seed, self.study.log, lazy=True).begin()
        written = {t.number for t in self.study.book.trials if t.state != "running"}
        self.first = {n: outcome for n, outcome in self.first.items() if n in written}
        self.parts = {}

    def _open(self) -> list[int]:
        return [n for n in self.study.running if n not in self.first]

    # --- what always holds --------------------------------------------------------------

    @invariant()
    def every_trial_is_asked_once_and_keeps_its_point(self) -> None:
        asks = [record[3] for record in self.study.log if record[2] == "ask"]
        assert asks == list(range(len(asks)))
        assert len(asks) <= cast(int, self.terms.n_trials)
        for trial in self.study.book.trials:
            assert self.points.setdefault(trial.number, trial.point) == trial.point

    @invariant()
    def every_trial_is_told_once_as_it_first_ended(self) -> None:
        tells = [record[3] for record in self.study.log if record[2] == "tell"]
        assert len(tells) == len(set(tells))
        assert self.told <= set(tells)
        self.told = set(cast("list[int]", tells))
        for trial in self.study.book.trials:
            if trial.state != "running":
                assert (trial.state, trial.values) == self.first[trial.number]

    @invariant()
    def no_more_are_outstanding_than_allowed(self) -> None:
        telling = sum(isinstance(request, Tell) for request in self.study.engine.requests)
        asking = len(self.study.engine.requests) - telling
        running = self.study.book.counts["running"]
        assert running - telling + asking <= self.terms.outstanding

    @invariant()
    def every_trial_that_runs_was_dispatched_in_this_session(self) -> None:
        assert set(self.study.running) <= set(self.study.dispatched)
        assert len(self.study.dispatched) == len(set(self.study.dispatched))

    def teardown(self) -> None:
        if not hasattr(self, "study"):
            return
        while self.study.engine.requests or self._open():
            while self.study.engine.requests:
                self.study.answer()
            for number in self._open():
                for repeat in set(range(self.terms.repeats)) - self.parts.get(number, set()):
                    self.study.end(number, r=repeat)
                self.first[number] = ("complete", (value_of(number),))
        assert self.study.finish is not None and self.study.finishes == 1
        assert self.study.book.counts["running"] == 0
        assert len(self.study.book.trials) == self.terms.n_trials
        self.every_trial_is_told_once_as_it_first_ended()
        self._compare_with_an_uninterrupted_study()

    def _compare_with_an_uninterrupted_study(self) -> None:
        """Completed in the same order, one that never stopped has the same points and log."""
        whole = Designed(self.terms, self.seed, [], lazy=False).begin()
        for number in (record[3] for record in self.study.log if record[2] == "tell"):
            state, _ = self.first[cast(int, number)]
            if state == "failed":
                whole.fail(cast(int, number))
                continue
            for repeat in range(self.terms.repeats):
                whole.end(cast(int, number), r=repeat)
        points = [trial.point for trial in self.study.book.trials]
        assert [trial.point for trial in whole.book.trials] == points
        assert replayed(self.study.log).summary() == whole.book.summary()


StudyMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStudies = StudyMachine.TestCase
