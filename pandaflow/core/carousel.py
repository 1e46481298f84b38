"""The data carousel: tape files requested within a budget, each job released by its own file.

Rule 1: ``handle(events) -> commands``. No input or output, no clock, no randomness, no thread:
times and jitter arrive in events. Same events, same commands.
Rule 2: a file is staged when its own lock is OK. What the catalog says of the whole rule is used
only to find what is stuck.
Rule 3: no event is an error. Late, doubled and foreign ones change nothing: the catalog is asked
again and again, answers overtake each other, and people delete rules by hand.

States, events and commands are in ``staging``, what is known in ``tapestate`` and ``tapebook``, who
is next in ``tapequeue``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from pandaflow.core import staging as st
from pandaflow.core.staging import CarouselSettings, FileStage, RuleState, backoff
from pandaflow.core.tapebook import TapeBook
from pandaflow.core.tapestate import StagedFile, StagingRule, TapeSystem, Want, held

_F, _R = FileStage, RuleState


class Carousel(TapeBook):
    """The state of the carousel for one destination.

    Parameters
    ----------
    settings : CarouselSettings, optional

    Examples
    --------
    >>> from pandaflow.core.carousel import Carousel
    >>> from pandaflow.core.staging import FilesWanted, LockOk
    >>> carousel = Carousel()
    >>> wanted = FilesWanted(0.0, "run-1", "CERN-TAPE", "mc:zmumu", (("mc:f1", 2_000_000_000),))
    >>> [type(command).__name__ for command in carousel.handle([wanted])]
    ['RequestRule']
    >>> carousel.why("mc:f1")
    'requested from CERN-TAPE: 0 of 1 files of its rule are on disk'
    >>> carousel.handle([LockOk(60.0, 1, ("mc:f1",))])
    [ReleaseJobs(run='run-1', files=('mc:f1',))]
    """

    def __init__(self, settings: CarouselSettings | None = None) -> None:
        super().__init__(settings or CarouselSettings())
        self._now = -math.inf
        self._woken: float | None = None
        self._out: list[st.Command] = []
        #: Rules of which a file has lost its last user.
        self._idle: dict[int, None] = {}

    # --- events -------------------------------------------------------------------------

    def handle(self, events: Iterable[st.Event]) -> list[st.Command]:
        """Take in what has happened; return what is to be done, in order."""
        self._out = []
        for event in events:
            self._now = max(self._now, event.at)
            self._take_in(event)
        self._settle()
        return self._out

    def _take_in(self, event: st.Event) -> None:
        match event:
            case st.FilesWanted():
                self._wanted(event)
            case st.JobsDone():
                self._jobs_done(event)
            case st.Lost():
                self._lost(self._files.get(event.file), event.why)
            case st.Downtime():
                self._downtime(event)
            case st.Resumed():
                self._say_again()
            case st.Tick():
                pass
            case _:
                self._hear(event)

    def _hear(self, event: st.Answer) -> None:
        match event:
            case st.LockOk():
                self._locks_ok(event)
            case st.RuleStuck():
                self._stuck(event)
            case st.RuleMade():
                self._made(event)
            case st.RuleRefused():
                self._refused(event)
            case st.RuleGone():
                self._gone(event)

    def _wanted(self, event: st.FilesWanted) -> None:
        ready = []
        for name, size in event.files:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = StagedFile(name, size, event.tape, event.dataset)
                self._count(file, "wanted")
                self._tape(file.tape).waiting += 1
            if self._want(file, event):
                ready.append(name)
        if ready:
            self._out.append(st.ReleaseJobs(event.run, tuple(ready)))

    def _want(self, file: StagedFile, event: st.FilesWanted) -> bool:
        """Note that a run needs a file; say whether its jobs are released at once."""
        self._changed_files[file.name] = None
        if file.stage is _F.LOST:
            file.tape, file.dataset, file.tries, file.why = event.tape, event.dataset, 0, ""
            self._move(file, _F.WAITING)
        elif file.stage is _F.DONE:
            self._want_again(file)
        known = file.wants.get(event.run)
        if known is None:
            file.wants[event.run] = Want(event.run, event.priority)
        elif known.priority < event.priority:
            file.wants[event.run] = Want(event.run, event.priority, None, known.told)
        if file.stage is _F.WAITING and file.wants[event.run].entry is None:
            self._enqueue(file, event.run)
        return file.stage is _F.STAGED and self._tell(file, event.run)

    def _want_again(self, file: StagedFile) -> None:
        rule = self._rules[file.rule or 0]
        if file.name not in rule.pending:
            self._move(file, _F.STAGED)
        else:
            self._move(file, _F.STUCK if rule.state is _R.STUCK else _F.REQUESTED)

    def _tell(self, file: StagedFile, run: str) -> bool:
        """Note that the jobs of a run are released; say whether they were not before."""
        want = file.wants[run]
        file.wants[run] = Want(want.run, want.priority, want.entry, told=True)
        return not want.told

    def _locks_ok(self, event: st.LockOk) -> None:
        rule = self._rules.get(event.request)
        if rule is None or not rule.live:
            return
        ready: dict[str, list[str]] = {}
        for name in event.files:
            if self._came(rule, name):
                for run in self._on_disk(rule, name):
                    ready.setdefault(run, []).append(name)
        self._calm(rule)
        for run, names in ready.items():
            self._out.append(st.ReleaseJobs(run, tuple(names)))

    def _came(self, rule: StagingRule, name: str) -> bool:
        """Take a file out of what is in flight; say whether it was one of the rule's."""
        size = rule.pending.pop(name, None)
        if size is None:
            return self._given_up(rule, name)
        self._tape(rule.tape).drop(size)
        rule.boosts = 0
        self._changed_rules[rule.request] = None
        return True

    def _given_up(self, rule: StagingRule, name: str) -> bool:
        """Whether a rule has brought a file after all that nothing else holds yet."""
        file = self._files.get(name)
        if file is None or file.stage is not _F.WAITING or rule.request != file.rule:
            return False
        rule.files[name] = file.size
        self._changed_rules[rule.request] = None
        return True

    def _on_disk(self, rule: StagingRule, name: str) -> Iterator[str]:
        """Note that a file is on disk; yield the runs whose jobs it releases."""
        file = self._files.get(name)
        if file is None or file.rule != rule.request or file.stage is _F.DONE:
            return
        self._move(file, _F.STAGED)
        file.why = ""
        for run in list(file.wants):
            if self._tell(file, run):
                yield run

    def _jobs_done(self, event: st.JobsDone) -> None:
        names = event.files
        if names is None:
            names = tuple(name for name, file in self._files.items() if event.run in file.wants)
        for name in names:
            file = self._files.get(name)
            if file is not None and file.wants.pop(event.run, None) is not None:
                self._changed_files[name] = None
                if not file.wants and file.stage is not _F.LOST:
                    self._unneeded(file)

    def _unneeded(self, file: StagedFile) -> None:
        if file.stage is _F.STAGED:
            self._count(file, "processed")
        waited = file.stage is _F.WAITING
        self._move(file, _F.DONE)
        if waited:
            del self._files[file.name]
        elif file.rule is not None:
            self._idle[file.rule] = None

    # --- rules --------------------------------------------------------------------------

    def _made(self, event: st.RuleMade) -> None:
        rule = self._rules.get(event.request)
        if rule is None or rule.state is not _R.ASKED:
            return
        rule.rule = event.rule
        rule.expires = self._now + self._settings.lifetime
        self._turn(rule, _R.ACTIVE if rule.boost_at is None else _R.STUCK)
        self._tape(rule.tape).refusals = 0
        self._idle[rule.request] = None

    def _refused(self, event: st.RuleRefused) -> None:
        rule = self._rules.get(event.request)
        if rule is None or rule.state is not _R.ASKED:
            return
        wanted = list(held(rule, self._files))
        self._end(rule)
        if not event.transient:
            for file in wanted:
                self._lost(file, event.why)
            return
        tape = self._tape(rule.tape)
        settings = self._settings
        pause = backoff(settings.refused_after, settings.refused_most, tape.refusals, event.jitter)
        tape.refusals += 1
        tape.not_before = max(tape.not_before, self._now + pause)
        for file in wanted:
            file.why = event.why
            self._requeue(file)

    def _gone(self, event: st.RuleGone) -> None:
        rule = self._rules.get(event.request)
        if rule is None:
            return
        wanted = list(held(rule, self._files))
        self._end(rule)
        for file in wanted:
            self._requeue(file)

    def _stuck(self, event: st.RuleStuck) -> None:
        rule = self._rules.get(event.request)
        if rule is None or not rule.live or rule.boost_at is not None:
            return  # told again before it was boosted
        names = [name for name in event.files or rule.pending if name in rule.pending]
        if not names:
            return  # late: they have come
        rule.why = event.why
        down = self._tape(rule.tape).down_until(self._now)
        if down is None and rule.boosts >= self._settings.boosts:
            self._give_up(rule, names)
            return
        settings = self._settings
        pause = backoff(settings.boost_after, settings.boost_most, rule.boosts, event.jitter)
        # A tape system that is down is no fault of the rule: boosted when it is back, not counted.
        rule.boost_at = self._now + pause if down is None else down
        rule.excused = down is not None
        if rule.state is _R.ACTIVE:
            self._turn(rule, _R.STUCK)
        for name in names:
            self._set_stage(rule, name, _F.STUCK)

    def _set_stage(self, rule: StagingRule, name: str, stage: FileStage) -> None:
        file = self._files.get(name)
        if file is None or file.rule != rule.request or file.stage not in (_F.REQUESTED, _F.STUCK):
            return
        if file.stage is not stage:
            self._move(file, stage)
        file.why = rule.why

    def _give_up(self, rule: StagingRule, names: list[str]) -> None:
        about = (rule.request, rule.rule, tuple(names), rule.boosts, rule.why)
        self._out.append(st.ReportStuck(*about))
        for name in names:
            self._cut(rule, name)
            file = self._files.get(name)
            if file is None or file.rule != rule.request:
                continue
            if file.stage is _F.DONE:
                self._forget(file)
                continue
            file.tries += 1
            file.why = rule.why
            if file.tries >= self._settings.tries:
                self._lost(file, f"requested in vain {file.tries} times: {rule.why}")
            else:
                self._requeue(file, behind=True)
                file.rule = rule.request  # it may come yet
        rule.boosts = 0
        self._calm(rule)

    def _calm(self, rule: StagingRule) -> None:
        """Stop waiting for a boost when none of its files is stuck any more."""
        names = (name for name in rule.pending if self._is_stuck(rule, name))
        if rule.boost_at is not None and next(names, None) is None:
            rule.boost_at = None
            if rule.state is _R.STUCK:
                self._turn(rule, _R.ACTIVE)

    def _is_stuck(self, rule: StagingRule, name: str) -> bool:
        file = self._files.get(name)
        return file is not None and file.rule == rule.request and file.stage is _F.STUCK

    def _cut(self, rule: StagingRule, name: str) -> None:
        """Take a file out of a rule."""
        rule.files.pop(name, None)
        size = rule.pending.pop(name, None)
        if size is not None:
            self._tape(rule.tape).drop(size)
        self._changed_rules[rule.request] = None
        self._idle[rule.request] = None

    def _end(self, rule: StagingRule) -> None:
        """Forget a rule that is no more."""
        for name in list(rule.files):
            self._cut(rule, name)
            file = self._files.get(name)
            if file is not None and file.rule == rule.request and file.stage is _F.DONE:
                self._forget(file)
        self._turn(rule, _R.GONE)
        del self._rules[rule.request]

    def _lost(self, file: StagedFile | None, why: str) -> None:
        if file is None or file.stage is _F.LOST:
            return
        rule = self._rules.get(file.rule or 0)
        if rule is not None:
            self._cut(rule, file.name)
        if file.stage is _F.DONE:
            self._forget(file)
            return
        self._move(file, _F.LOST)
        self._count(file, "lost")
        file.rule, file.why = None, why
        for run in file.wants:
            self._out.append(st.FailJobs(run, (file.name,), why))
        file.wants.clear()
        if rule is not None:
            self._calm(rule)

    def _downtime(self, event: st.Downtime) -> None:
        tape = self._tape(event.tape)
        tape.downtimes = {a: b for a, b in tape.downtimes.items() if b > self._now}
        tape.downtimes.pop(event.start, None)
        if event.end > event.start:
            tape.downtimes[event.start] = event.end

    def _say_again(self) -> None:
        """Repeat what may not have been heard before a crash."""
        self._woken = None
        for rule in self._rules.values():
            if rule.state is _R.ASKED:
                self._out.append(self._request(rule))
            elif rule.state is _R.RELEASING:
                self._out.append(st.ReleaseRule(rule.request, rule.rule))

    # --- conclusions --------------------------------------------------------------------

    def _settle(self) -> None:
        self._release_rules()
        for rule in self._rules.values():
            self._boost(rule)
            self._extend(rule)
        for tape in self._tapes.values():
            self._fill(tape)
        self._wake()

    def _release_rules(self) -> None:
        for request in self._idle:
            rule = self._rules.get(request)
            if rule is None or rule.state not in (_R.ACTIVE, _R.STUCK):
                continue
            if next(held(rule, self._files), None) is None:
                self._release(rule)
        self._idle.clear()

    def _release(self, rule: StagingRule) -> None:
        for name in list(rule.files):
            self._cut(rule, name)
            file = self._files.get(name)
            if file is not None and file.rule == rule.request and file.stage is _F.DONE:
                self._forget(file)
        rule.boost_at = None
        self._turn(rule, _R.RELEASING)
        self._out.append(st.ReleaseRule(rule.request, rule.rule))

    def _boost(self, rule: StagingRule) -> None:
        at = self._boost_time(rule)
        if at is None or at > self._now:
            return
        rule.boost_at = None
        rule.boosts += not rule.excused
        self._turn(rule, _R.ACTIVE)
        for name in rule.pending:
            self._set_stage(rule, name, _F.REQUESTED)
        self._out.append(st.BoostRule(rule.request, rule.rule, rule.boosts))

    def _boost_time(self, rule: StagingRule) -> float | None:
        """Return when a rule is boosted, which is not while its tape system is down."""
        if rule.state is not _R.STUCK or rule.boost_at is None:
            return None
        return self._tape(rule.tape).down_until(max(rule.boost_at, self._now)) or rule.boost_at

    def _extend(self, rule: StagingRule) -> None:
        at = self._extend_time(rule)
        if at is not None and at <= self._now:
            rule.expires = self._now + self._settings.lifetime
            self._changed_rules[rule.request] = None
            self._out.append(st.ExtendRule(rule.request, rule.rule, self._settings.lifetime))

    def _extend_time(self, rule: StagingRule) -> float | None:
        if rule.state not in (_R.ACTIVE, _R.STUCK):
            return None
        return rule.expires - self._settings.lifetime / 2

    def _fill(self, tape: TapeSystem) -> None:
        """Request what the budget has room for, if it is worth the while."""
        now = self._now
        if not tape.waiting or tape.down_until(now) is not None or now < tape.not_before:
            return
        if not tape.low(self._settings.refill):
            return
        chosen: dict[str, list[StagedFile]] = {}
        while turn := tape.queue.front(self._price):
            file = self._files[turn[1].file]
            if not tape.fits(file.size):
                break
            tape.queue.take(turn[0], tape.price(file.size))
            self._move(file, _F.REQUESTED)
            tape.add(file.size)
            chosen.setdefault(file.dataset, []).append(file)
        most = self._settings.rule_files
        for files in chosen.values():
            for first in range(0, len(files), most):
                self._ask(tape, files[first : first + most])

    def _ask(self, tape: TapeSystem, files: list[StagedFile]) -> None:
        self._last_request += 1
        rule = StagingRule(self._last_request, tape.name, files[0].dataset)
        for file in files:
            rule.files[file.name] = rule.pending[file.name] = file.size
            file.rule = rule.request
            self._count(file, "requested")
        self._rules[rule.request] = rule
        self._changed_rules[rule.request] = None
        self._out.append(self._request(rule))

    def _request(self, rule: StagingRule) -> st.RequestRule:
        about = (rule.request, rule.tape, rule.dataset, tuple(rule.files))
        return st.RequestRule(*about, sum(rule.files.values()), self._settings.lifetime)

    def _wake(self) -> None:
        times = [time for time in self._times() if time > self._now]
        at = min(times, default=None)
        if at is not None and at != self._woken:
            self._out.append(st.WakeAt(at))
        self._woken = at

    def _times(self) -> Iterator[float]:
        for rule in self._rules.values():
            for at in (self._boost_time(rule), self._extend_time(rule)):
                if at is not None:
                    yield at
        for tape in self._tapes.values():
            if tape.waiting:
                yield tape.down_until(self._now) or tape.not_before
