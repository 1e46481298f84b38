"""How many nodes of which site: enough for all, never too many, and none left out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.brokerage import Load, Site
from pandaflow.core.model import Resources
from pandaflow.executors.batch.provision import Kind, kinds, provision
from pandaflow.executors.batch.slots import Slot, serves, slot_of

GB = 10**9
SMALL = Site("small", cores=2, memory=4 * GB, walltime=300, gpus=0, nodes=2)
LARGE = Site("large", cores=8, memory=64 * GB, walltime=86400, gpus=0, nodes=3)
GPU = Site("gpu", cores=4, memory=16 * GB, walltime=3600, gpus=2, nodes=1)
SITES = {site.name: site for site in (SMALL, LARGE, GPU)}
ROOM = {"small": 2, "large": 3, "gpu": 1}

ONE, FOUR, WIDE = Resources(), Resources(cores=4), Resources(cores=8)
FAT, LONG, ON_GPU = Resources(memory=20 * GB), Resources(walltime=4000), Resources(gpus=1)
TOO_BIG = Resources(cores=9)


def kind(resources: Resources, site: Site) -> Kind:
    slot = slot_of(resources, site)
    assert slot is not None
    return Kind(site.name, slot)


def nodes(
    busy: dict[Kind, int], waiting: dict[Resources, int], *sites: Site, **room: int
) -> dict[Kind, int]:
    named = {site.name: site for site in sites}
    return provision(busy, waiting, named, room, {})


# --- by hand ----------------------------------------------------------------------------


def test_nothing_to_do_needs_nothing() -> None:
    assert nodes({}, {}, LARGE, large=3) == {}
    assert nodes({}, {ONE: 0}, LARGE, large=3) == {}


@pytest.mark.parametrize(("jobs", "wanted"), [(1, 1), (8, 1), (9, 2), (24, 3), (10_000, 3)])
def test_as_many_as_the_jobs_fill(jobs: int, wanted: int) -> None:
    assert nodes({}, {ONE: jobs}, LARGE, large=3) == {kind(ONE, LARGE): wanted}


def test_free_slots_of_nodes_that_run_something_come_first() -> None:
    one = kind(ONE, LARGE)
    assert nodes({one: 5}, {ONE: 3}, LARGE, large=3) == {one: 1}
    assert nodes({one: 5}, {ONE: 4}, LARGE, large=3) == {one: 2}


def test_each_kind_gets_a_node_in_turns() -> None:
    found = nodes({}, {ONE: 1000, FOUR: 1000, FAT: 1000}, LARGE, large=3)
    assert found == {kind(ONE, LARGE): 1, kind(FOUR, LARGE): 1, kind(FAT, LARGE): 1}


def test_the_kind_that_has_the_most_makes_room() -> None:
    one, four = kind(ONE, LARGE), kind(FOUR, LARGE)
    assert nodes({one: 24}, {ONE: 50, FOUR: 1}, LARGE, large=3) == {one: 2, four: 1}


def test_nobody_gives_up_the_only_node_it_has() -> None:
    one, four = kind(ONE, LARGE), kind(FOUR, LARGE)
    assert nodes({one: 8}, {ONE: 50, FOUR: 1}, LARGE, large=1) == {one: 1}
    assert nodes({one: 8, four: 2}, {FAT: 1}, LARGE, large=2) == {one: 1, four: 1}


def test_what_is_full_sends_jobs_to_the_next_site() -> None:
    found = nodes({}, {ONE: 100}, SMALL, LARGE, small=2, large=1)
    assert found == {kind(ONE, SMALL): 2, kind(ONE, LARGE): 1}


def test_jobs_go_only_where_they_fit() -> None:
    found = provision({}, {LONG: 100, ON_GPU: 1}, SITES, ROOM, {})
    assert {each.site for each in found} == {"large", "gpu"}
    assert found[kind(ON_GPU, GPU)] == 1


def test_what_fits_nowhere_gets_nothing() -> None:
    assert provision({}, {TOO_BIG: 5}, SITES, ROOM, {}) == {}


def test_a_site_that_is_not_to_be_used_keeps_what_runs_there() -> None:
    one = kind(ONE, SMALL)
    assert nodes({one: 3}, {ONE: 1}, LARGE, large=3) == {one: 2, kind(ONE, LARGE): 1}


def test_the_better_site_comes_first() -> None:
    spoiled = {"large": Load(lost=1000)}
    assert kinds(ONE, SITES, {})[0].site == "large"
    assert kinds(ONE, SITES, spoiled)[-1].site == "large"


# --- whatever comes ---------------------------------------------------------------------

ASKED = [ONE, FOUR, WIDE, FAT, LONG, ON_GPU, TOO_BIG, Resources(cores=2, walltime=200)]
waits = st.dictionaries(st.sampled_from(ASKED), st.integers(0, 60))
rooms = st.fixed_dictionaries({name: st.integers(0, 6) for name in SITES})


def test_a_pilot_on_its_way_keeps_the_jobs_it_was_asked_for() -> None:
    """It lowers the weight of its site: the same jobs would get another one elsewhere."""
    lean, rich = Site("lean", cores=1, nodes=4), Site("rich", cores=1, nodes=2)
    sites, room = {"lean": lean, "rich": rich}, {"lean": 4, "rich": 2}
    loads = {"lean": Load(waiting=1)}
    here, elsewhere = kind(ONE, lean), kind(ONE, rich)
    assert provision({}, {ONE: 1}, sites, room, loads) == {elsewhere: 1}
    assert provision({}, {ONE: 1}, sites, room, loads, {here: 1}) == {here: 1}
    found = provision({}, {ONE: 2}, sites, room, loads, {here: 1})
    assert found == {here: 1, elsewhere: 1}, "what it cannot serve goes to the best site"
    assert provision({here: 1}, {ONE: 1}, sites, room, loads, {here: 1})[elsewhere] == 1


@st.composite
def busies(draw: st.DrawFn, room: dict[str, int]) -> dict[Kind, int]:
    """Draw slots that run something, on no more nodes than there is room for."""
    busy: Counter[Kind] = Counter()
    for name, number in room.items():
        for _ in range(draw(st.integers(0, number))):
            slots = [slot for r in ASKED if (slot := slot_of(r, SITES[name])) is not None]
            one = Kind(name, draw(st.sampled_from(slots)))
            busy[one] += one.slot.count
    return {one: draw(st.integers(most - one.slot.count + 1, most)) for one, most in busy.items()}


def used(found: dict[Kind, int]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each, number in found.items():
        total[each.site] += number
    return total


@given(st.data())
def test_never_above_the_room_and_never_none(data: st.DataObject) -> None:
    room, waiting = data.draw(rooms), data.draw(waits)
    busy = data.draw(busies(room))
    found = provision(busy, waiting, SITES, room, {})
    assert all(number <= room[name] for name, number in used(found).items())
    assert all(number > 0 for number in found.values())


@given(st.data())
def test_busy_nodes_are_kept_but_for_one_that_makes_room(data: st.DataObject) -> None:
    room, waiting = data.draw(rooms), data.draw(waits)
    busy = data.draw(busies(room))
    found = provision(busy, waiting, SITES, room, {})
    for each, count in busy.items():
        least = -(-count // each.slot.count)
        assert found[each] >= 1
        given_up = least - found[each]
        others = [k for k in found if k.site == each.site and k != each and not busy.get(k)]
        assert given_up <= len(others), "each one that is given up has a taker"


@given(st.data())
def test_every_job_that_fits_has_a_node_if_there_are_enough(data: st.DataObject) -> None:
    waiting = data.draw(waits)
    fits = [r for r, count in waiting.items() if count and kinds(r, SITES, {})]
    room = dict.fromkeys(SITES, len(fits))
    found = provision({}, waiting, SITES, room, {})
    for asked in fits:
        own = kinds(asked, SITES, {})
        sites = {each.site for each in own}
        assert any(
            each in own or (each.site in sites and serves(each.slot, asked))
            for each, number in found.items()
            if number
        )


@given(waits)
def test_no_more_than_the_jobs_need(waiting: dict[Resources, int]) -> None:
    found = provision({}, waiting, SITES, dict.fromkeys(SITES, 10**6), {})
    slots = sum(number * each.slot.count for each, number in found.items())
    jobs = {r: count for r, count in waiting.items() if count and kinds(r, SITES, {})}
    assert slots >= sum(jobs.values())
    for each, number in found.items():
        of_it = sum(count for r, count in jobs.items() if each in kinds(r, SITES, {}))
        assert number <= -(-of_it // each.slot.count)


@given(st.integers(1, 4), st.integers(1, 100), st.integers(1, 100))
def test_what_starves_today_is_served_when_something_ends(room: int, ones: int, fours: int) -> None:
    """Turn after turn, with all jobs of a node ending between two turns, all get done."""
    left, turns = Counter({ONE: ones, FOUR: fours, FAT: 3}), 0
    while +left:
        turns += 1
        assert turns < 400
        found = provision({}, +left, {"large": LARGE}, {"large": room}, {})
        assert found, "something goes on"
        for each, number in found.items():
            for asked in list(left):
                if kind(asked, LARGE) == each:
                    left[asked] -= min(left[asked], number * each.slot.count)


def test_slots_with_equal_numbers_are_one_kind() -> None:
    assert kind(ONE, LARGE) == Kind("large", Slot(8, 1, 0, 8 * GB))
