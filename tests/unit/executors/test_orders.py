from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pandaflow.core.bundle import BundleSpec, SourceSlice
from pandaflow.core.chunking import Fixed
from pandaflow.core.commands import EmitBundle
from pandaflow.core.errors import SiteError
from pandaflow.core.model import Input, Resources, Source
from pandaflow.executors.orders import Orders
from pandaflow.ports import Assignment


def bundle(number: int) -> Assignment:
    jobs = range(1)
    spec = BundleSpec(
        run="run-1",
        bundle=number,
        task=0,
        name="work",
        token="token",
        kind="function",
        jobs=jobs,
        attempt=1,
        lists=False,
        inputs=(Input(Source(0)),),
        chunks=Fixed(1),
        sources={0: SourceSlice(0, (1,))},
        results="/nowhere",
    )
    emit = EmitBundle(
        bundle=number,
        task=0,
        jobs=jobs,
        attempt=1,
        executor="",
        resources=Resources(),
        needs=(),
        priority=(0, 0, 0),
    )
    return Assignment(emit, spec, "", b"")


class Site:
    """A session that notes what it is told; the test says when and how."""

    def __init__(self, seconds: float = 60.0) -> None:
        self.done: list[Any] = []
        self.refused: list[tuple[str, list[int]]] = []
        self.turns, self.left = 0, threading.Event()
        self.busy, self.go_on = threading.Event(), threading.Event()
        self.orders = Orders(
            "run-1",
            "a site",
            wait=lambda: seconds,
            carry_out=self.carry_out,
            turn=self.turn,
            leave=self.leave,
            give_up=self.give_up,
        )

    def carry_out(self, kind: str, what: Any) -> Any:
        match kind:
            case "block":
                self.busy.set()
                assert self.go_on.wait(30)
            case "break":
                raise ValueError("a mistake")
            case "taken over":
                self.orders.give_up("somebody else is in charge")
        self.done.append((kind, [each.spec.bundle for each in what] if kind == "submit" else what))
        return what

    def turn(self) -> None:
        self.turns += 1
        if self.done and self.done[-1] == ("turn into a mistake", None):
            raise OSError("a turn for the worse")

    def leave(self) -> None:
        if self.done and self.done[-1] == ("stumble", None):
            raise RuntimeError("while it left")
        self.left.set()

    def give_up(self, reason: str, untaken: Sequence[Assignment]) -> None:
        self.refused.append((reason, [each.spec.bundle for each in untaken]))

    def block(self) -> None:
        """Keep the thread busy until ``go_on``."""
        self.orders.put("block")
        assert self.busy.wait(30)


@pytest.fixture
def site() -> Iterator[Site]:
    one = Site()
    one.orders.start()
    yield one
    one.go_on.set()
    one.orders.close()


Aside = Callable[..., Any]


@pytest.fixture
def aside(site: Site) -> Iterator[Aside]:
    """Call something in another thread, until the session has ended at the latest."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit
        site.go_on.set()


def test_orders_are_carried_out_in_the_order_they_were_given(site: Site) -> None:
    site.block()
    for number in range(100):
        site.orders.put("cancel", number)
        site.orders.submit([bundle(number)])
    site.go_on.set()
    site.orders.close()
    expected: list[Any] = [("block", None)]
    for number in range(100):
        expected += [("cancel", number), ("submit", [number])]
    assert site.done == expected
    assert site.left.is_set() and not site.refused


def test_orders_of_many_threads_are_carried_out_once_each() -> None:
    site = Site()
    site.orders.start()

    def give(who: int) -> None:
        for number in range(200):
            site.orders.put("cancel", (who, number))

    threads = [threading.Thread(target=give, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    site.orders.close()
    told = [what for _, what in site.done]
    assert sorted(told) == [(who, number) for who in range(4) for number in range(200)]
    for who in range(4):
        assert [number for teller, number in told if teller == who] == list(range(200))


def test_orders_given_before_the_start_wait_for_it() -> None:
    site = Site()
    assert site.orders.put("cancel", 1)
    assert not site.done
    site.orders.start()
    site.orders.close()
    assert site.done == [("cancel", 1)]


def test_turns_are_taken_without_orders(until: Callable[..., None]) -> None:
    site = Site(seconds=0.0)
    site.orders.start()
    until(lambda: site.turns > 10)
    site.orders.close()
    assert not site.done


def test_a_question_gets_the_answer(site: Site) -> None:
    assert site.orders.ask("adopt", {1, 2}) == {1, 2}


def test_after_a_mistake_all_that_waits_is_told(site: Site, aside: Aside) -> None:
    site.block()
    site.orders.put("break")
    site.orders.submit([bundle(1), bundle(2)])
    site.orders.put("cancel", [1])
    site.orders.submit([bundle(3)])
    asked = aside(site.orders.ask, "adopt", {1})
    site.go_on.set()
    with pytest.raises(SiteError, match="a site has ended"):
        asked.result(30)
    site.orders.close()
    assert site.refused == [("the session with a site broke: ValueError: a mistake", [1, 2, 3])]
    assert site.done == [("block", None)] and not site.left.is_set()


def test_a_question_that_leads_to_a_mistake_fails_with_it(site: Site) -> None:
    with pytest.raises(SiteError, match=r"has ended: .* broke: ValueError: a mistake"):
        site.orders.ask("break", None)


def test_a_mistake_in_a_turn_is_told(site: Site) -> None:
    site.orders.put("turn into a mistake")
    site.orders.close()
    assert site.refused == [("the session with a site broke: OSError: a turn for the worse", [])]
    assert not site.left.is_set()


def test_the_bundles_that_a_mistake_was_made_with_are_told_too() -> None:
    class Stumbling(Site):
        def carry_out(self, kind: str, what: Any) -> None:
            raise KeyError(kind)

    site = Stumbling()
    site.orders.submit([bundle(7)])
    site.orders.submit([bundle(8)])
    site.orders.start()
    site.orders.close()
    assert site.refused == [("the session with a site broke: KeyError: 'submit'", [7, 8])]


def test_a_mistake_is_logged_with_its_traceback(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.orders.put("break")
    site.orders.close()
    (record,) = caplog.records
    assert record.getMessage() == "run-1: the session with a site broke: ValueError: a mistake"
    assert record.exc_info is not None and record.exc_info[0] is ValueError


def test_a_mistake_while_leaving_is_told(site: Site) -> None:
    site.orders.put("stumble")
    site.orders.close()
    assert site.refused == [("the session with a site broke: RuntimeError: while it left", [])]


def test_closing_while_a_question_is_open_answers_it_first(
    site: Site, aside: Aside, until: Callable[..., None]
) -> None:
    site.block()
    asked = aside(site.orders.ask, "adopt", {1})
    until(lambda: not site.orders._queue.empty())
    closed = aside(site.orders.close)
    site.go_on.set()
    assert asked.result(30) == {1}
    closed.result(30)
    assert site.left.is_set()


def test_a_session_that_has_ended_takes_no_orders(site: Site) -> None:
    site.orders.close()
    with pytest.raises(SiteError, match=r"a site has ended$"):
        site.orders.submit([bundle(1)])
    with pytest.raises(SiteError, match=r"a site has ended$"):
        site.orders.ask("adopt", {1})
    assert not site.orders.put("cancel", [1])
    site.orders.close()
    assert not site.done and not site.refused


def test_a_session_that_is_given_up_says_why_from_then_on(site: Site) -> None:
    site.block()
    site.orders.put("taken over")
    site.orders.submit([bundle(1)])
    site.go_on.set()
    site.orders.close()
    assert site.refused == [("somebody else is in charge", [1])]
    assert site.left.is_set()  # it winds up what is its own: only a mistake keeps it from that
    with pytest.raises(SiteError, match="has ended: somebody else is in charge"):
        site.orders.submit([bundle(2)])


def test_a_question_that_ends_in_giving_up_fails(site: Site) -> None:
    with pytest.raises(SiteError, match="somebody else is in charge"):
        site.orders.ask("taken over", None)


def test_bundles_that_come_while_it_leaves_are_refused() -> None:
    class Late(Site):
        def leave(self) -> None:
            self.orders.submit([bundle(5)])

    site = Late()
    site.orders.start()
    site.orders.close()
    assert site.refused == [("this session with a site has ended", [5])]


def test_orders_are_obeyed_while_it_leaves() -> None:
    class Slow(Site):
        def leave(self) -> None:
            self.orders.put("done", 1)
            self.orders.obey(0.0)
            self.orders.obey(0.001)

    site = Slow()
    site.orders.start()
    site.orders.close()
    assert site.done == [("done", 1)] and not site.refused
