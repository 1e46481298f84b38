"""Files that runs want, a catalog that answers late, twice or not at all, and a carousel between.

The catalog is modelled as sets: which rules it was asked for, which locks it has said are OK. What
the carousel commands is checked against that after every step; a second carousel gets the same
events, and now and then the first is replaced by one restored from its records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pandaflow.core import staging as sg
from pandaflow.core.carousel import Carousel
from pandaflow.core.staging import Budget, CarouselSettings, FileStage

TAPES, RUNS, DATASETS = ("T1", "T2"), ("r1", "r2", "r3"), ("d1", "d2")
#: Names of files, each with its size and home.
SIZES = {f"f{k}": (5 * k) % 13 for k in range(24)}
OVER = (FileStage.LOST, None)


def home(name: str) -> tuple[str, str]:
    number = int(name[1:])
    return TAPES[number % 3 == 0], DATASETS[number % 2]


@dataclass
class Asked:
    """A rule as the catalog knows it."""

    tape: str
    files: tuple[str, ...]
    rule: str = ""
    ok: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)
    boosts: int = 0
    released: bool = False
    gone: bool = False

    @property
    def live(self) -> bool:
        return not (self.released or self.gone)

    def pending(self, lost: set[str]) -> set[str]:
        return set(self.files) - self.ok - self.given_up - lost if self.live else set()


class CarouselMachine(RuleBasedStateMachine):
    """Some runs, two tape systems, the model of the catalog."""

    @initialize(
        size=st.integers(8, 30),
        files=st.integers(1, 6),
        refill=st.sampled_from([0.0, 0.5, 1.0]),
        boosts=st.integers(0, 2),
        quantum=st.sampled_from([1, 10, 100]),
        rule_files=st.integers(1, 3),
    )
    def set_up(
        self, size: int, files: int, refill: float, boosts: int, quantum: int, rule_files: int
    ) -> None:
        self.settings = CarouselSettings(
            default=Budget(size, files),
            refill=refill,
            boosts=boosts,
            quantum=quantum,
            rule_files=rule_files,
            boost_after=10.0,
            boost_most=40.0,
            refused_after=5.0,
            tries=2,
            lifetime=1000.0,
        )
        self.carousel, self.twin = Carousel(self.settings), Carousel(self.settings)
        self.now = 1e9
        self.asked: dict[int, Asked] = {}
        self.lost_of: dict[int, set[str]] = defaultdict(set)
        #: What runs need and have not been told of; what they were told of.
        self.hopes: dict[str, set[str]] = {run: set() for run in RUNS}
        self.has: dict[str, set[str]] = {run: set() for run in RUNS}
        self.wake: float | None = None
        self.down: dict[str, float] = {}

    def tell(self, *events: sg.Event) -> None:
        """Tell both carousels, and check what they say."""
        commands = self.carousel.handle(events)
        again = self.twin.handle(events)
        assert [c for c in commands if not isinstance(c, sg.WakeAt)] == [
            c for c in again if not isinstance(c, sg.WakeAt)
        ]
        for command in commands:
            self.obey(command)

    def obey(self, command: sg.Command) -> None:
        match command:
            case sg.RequestRule():
                self.requested(command)
            case sg.ReleaseJobs(run, files):
                assert set(files) <= self.hopes[run], "released once, and only what it wants"
                assert all(any(f in a.ok and a.live for a in self.asked.values()) for f in files)
                self.hopes[run] -= set(files)
                self.has[run] |= set(files)
            case sg.FailJobs(run, files, why):
                assert why
                assert set(files) <= self.hopes[run] | self.has[run]
                self.hopes[run] -= set(files)
                self.has[run] -= set(files)
            case sg.ReleaseRule(request, rule_id):
                asked = self.asked[request]
                assert asked.rule == rule_id != ""
                asked.released = True
            case sg.BoostRule(request, rule_id):
                asked = self.asked[request]
                assert asked.rule == rule_id != "" and asked.live
                assert self.now >= self.down.get(asked.tape, 0.0), "not boosted while down"
                asked.boosts += 1
            case sg.ReportStuck(request, _, files):
                assert self.asked[request].boosts >= self.settings.boosts
                self.asked[request].given_up |= set(files)
            case sg.ExtendRule(request, rule_id):
                assert self.asked[request].rule == rule_id and self.asked[request].live
            case sg.WakeAt(time):
                assert time > self.now
                self.wake = time

    def requested(self, command: sg.RequestRule) -> None:
        again = self.asked.get(command.request)
        if again is not None:  # said again after a restart
            assert again.rule == "" and again.live and set(command.files) <= set(again.files)
            return
        assert self.now >= self.down.get(command.tape, 0.0), "nothing is requested while down"
        assert command.size == sum(SIZES[name] for name in command.files)
        assert len(command.files) <= self.settings.rule_files
        assert len(set(command.files)) == len(command.files)
        assert {home(name) for name in command.files} == {(command.tape, command.dataset)}
        needed = set().union(*self.hopes.values(), *self.has.values())
        assert set(command.files) <= needed, "only what somebody wants"
        for number, other in self.asked.items():
            on_disk = other.ok - other.given_up - self.lost_of[number] if other.live else set()
            twice = on_disk | other.pending(self.lost_of[number])
            assert not twice & set(command.files), "requested while a rule holds it"
        self.asked[command.request] = Asked(command.tape, command.files)

    # --- what happens -------------------------------------------------------------------

    @rule(
        run=st.sampled_from(RUNS),
        names=st.lists(st.sampled_from(sorted(SIZES)), min_size=1, max_size=8),
        priority=st.integers(0, 2),
    )
    def want(self, run: str, names: Sequence[str], priority: int) -> None:
        events = []
        for name in names:
            if name not in self.has[run]:
                self.hopes[run].add(name)
            about = (*home(name), ((name, SIZES[name]),))
            events.append(sg.FilesWanted(self.now, run, *about, priority))
        self.tell(*events)

    @rule(run=st.sampled_from(RUNS), data=st.data(), everything=st.booleans())
    def done(self, run: str, data: st.DataObject, everything: bool) -> None:
        known = sorted(self.hopes[run] | self.has[run] | {"f0"})
        names = None if everything else tuple(data.draw(st.lists(st.sampled_from(known))))
        gone = set(known if names is None else names)
        self.hopes[run] -= gone
        self.has[run] -= gone
        self.tell(sg.JobsDone(self.now, run, names))

    def some(self, data: st.DataObject) -> int:
        """Draw a request that was made, or a foreign one."""
        return data.draw(st.sampled_from([*self.asked, 999]))

    @rule(data=st.data())
    def made(self, data: st.DataObject) -> None:
        request = self.some(data)
        asked = self.asked.get(request)
        if asked is not None and not asked.rule and not asked.gone:
            asked.rule = f"id-{request}"
        self.tell(sg.RuleMade(self.now, request, f"id-{request}"))

    @rule(data=st.data(), transient=st.booleans(), jitter=st.floats(0, 1))
    def refused(self, data: st.DataObject, transient: bool, jitter: float) -> None:
        request = self.some(data)
        asked = self.asked.get(request)
        if asked is not None and not asked.rule:
            asked.gone = True
        self.tell(sg.RuleRefused(self.now, request, "no quota", transient, jitter))

    @rule(data=st.data())
    def ok(self, data: st.DataObject) -> None:
        request = self.some(data)
        asked = self.asked.get(request)
        names = data.draw(st.lists(st.sampled_from(asked.files if asked else ["f0"]), max_size=3))
        if asked is not None and asked.live:
            asked.ok |= set(names)
            asked.boosts = 0 if names else asked.boosts
        self.tell(sg.LockOk(self.now, request, tuple(names)))

    @rule(data=st.data(), every=st.booleans(), jitter=st.floats(0, 1))
    def stuck(self, data: st.DataObject, every: bool, jitter: float) -> None:
        request = self.some(data)
        asked = self.asked.get(request)
        files = asked.files if asked and not every else ()
        names = tuple(data.draw(st.lists(st.sampled_from(files), max_size=2))) if files else ()
        self.tell(sg.RuleStuck(self.now, request, names, "no space", jitter))

    @rule(data=st.data())
    def gone(self, data: st.DataObject) -> None:
        request = self.some(data)
        if request in self.asked:
            self.asked[request].gone = True
        self.tell(sg.RuleGone(self.now, request))

    @rule(tape=st.sampled_from(TAPES), length=st.integers(0, 50))
    def goes_down(self, tape: str, length: int) -> None:
        if self.now >= self.down.get(tape, 0.0):
            self.down[tape] = self.now + length
            self.tell(sg.Downtime(self.now, tape, self.now, self.now + length))

    @rule(name=st.sampled_from(sorted(SIZES)))
    def loses(self, name: str) -> None:
        for number, asked in self.asked.items():
            if asked.live and name in asked.files:
                self.lost_of[number].add(name)
        self.tell(sg.Lost(self.now, name, "the tape is broken"))

    @rule(seconds=st.integers(1, 60))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.tell(sg.Tick(self.now))

    @rule()
    def restart(self) -> None:
        """The second one goes on as before: the restored one must do the same."""
        self.carousel = Carousel.restore(self.carousel.records(), self.settings)
        self.twin.handle([sg.Resumed(self.now)])
        for command in self.carousel.handle([sg.Resumed(self.now)]):
            self.obey(command)

    # --- what always holds --------------------------------------------------------------

    @invariant()
    def the_budget_is_kept(self) -> None:
        if not hasattr(self, "asked"):
            return
        most = self.settings.default
        for tape in TAPES:
            names = [
                name
                for number, asked in self.asked.items()
                if asked.tape == tape
                for name in asked.pending(self.lost_of[number])
            ]
            size, files = self.carousel.in_flight(tape)
            assert files == len(names)
            assert size == sum(SIZES[name] for name in names)
            assert files <= most.files
            assert size <= most.size or files == 1

    @invariant()
    def who_hopes_is_in_the_books(self) -> None:
        if not hasattr(self, "asked"):
            return
        hoped = set().union(*self.hopes.values())
        for name in hoped:
            assert self.carousel.stage(name) in (
                FileStage.WAITING,
                FileStage.REQUESTED,
                FileStage.STUCK,
            )
            assert self.carousel.why(name, self.now) not in ("", "nobody wants it", "on disk")
        waiting = [name for tape in TAPES for name in self.carousel.queue(tape)]
        assert len(set(waiting)) == len(waiting)
        needed = hoped.union(*self.has.values())
        assert set(waiting) == {n for n in needed if self.carousel.stage(n) is FileStage.WAITING}

    @invariant()
    def rules_without_users_are_released(self) -> None:
        if not hasattr(self, "asked"):
            return
        needed = set().union(*self.hopes.values(), *self.has.values())
        for number, asked in self.asked.items():
            if asked.live and asked.rule:
                kept = set(asked.files) - self.lost_of[number]
                assert kept & needed, "a rule that nobody needs is released at once"

    @precondition(lambda self: len(self.asked) > 0)
    @rule()
    def all_ends_well(self) -> None:
        """From any state: the catalog makes every rule and brings every file, so all are had."""
        for _ in range(500):
            if not any(self.hopes.values()):
                break
            self.now += 1000.0
            for request, asked in list(self.asked.items()):
                if not asked.live:
                    continue
                if not asked.rule:
                    asked.rule = f"id-{request}"
                    self.tell(sg.RuleMade(self.now, request, asked.rule))
                if asked.live:
                    asked.ok |= set(asked.files)
                    asked.boosts = 0
                    self.tell(sg.LockOk(self.now, request, asked.files))
            self.tell(sg.Tick(self.now))
        assert not any(self.hopes.values()), "some file starves"


TestCarousel = CarouselMachine.TestCase
TestCarousel.settings = settings(max_examples=120, stateful_step_count=40)
