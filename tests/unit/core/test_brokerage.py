"""Which site may run a job, which does best, and what is said of the others."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.brokerage import (
    Load,
    Ranking,
    Site,
    cores_on_node,
    misfit,
    rank,
    slots_per_node,
    weight,
)
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Resources

GIB = 2**30
NODE = Site("long", cores=16, memory=64 * GIB, walltime=3600.0, gpus=2, disk=100 * GIB, nodes=4)

counts = st.integers(0, 10_000)
loads = st.builds(Load, running=counts, waiting=counts, finished=counts, lost=counts)
resources = st.builds(
    Resources,
    cores=st.integers(1, 64),
    memory=st.none() | st.integers(1, 256 * GIB),
    walltime=st.none() | st.floats(1, 1e6),
    disk=st.none() | st.integers(1, 256 * GIB),
    gpus=st.integers(0, 8),
    nodes=st.integers(1, 16),
    ranks_per_node=st.integers(1, 8),
)
sites = st.builds(
    Site,
    st.text("abcdefgh", min_size=1, max_size=3),
    cores=st.none() | st.integers(1, 128),
    memory=st.none() | st.integers(1, 512 * GIB),
    walltime=st.none() | st.floats(1, 1e6),
    gpus=st.none() | st.integers(0, 8),
    disk=st.none() | st.integers(1, 512 * GIB),
    nodes=st.none() | st.integers(1, 16),
)
several = st.lists(sites, max_size=5, unique_by=lambda site: site.name)


# --- sites as people write them -----------------------------------------------------------


def test_a_site_is_parsed() -> None:
    site: Any = Site
    made = site("long", memory="64 GiB", disk="1 GiB", walltime="12:00:00", extra=["--qos=x"])
    assert (made.memory, made.disk, made.walltime) == (64 * GIB, GIB, 43200.0)
    assert made.extra == ("--qos=x",)
    assert site("long", extra="--qos=x").extra == ("--qos=x",)
    assert (made.queue, made.cores, made.nodes) == (None, None, None)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": ""}, "site '': give it a name"),
        ({"name": "a\nb"}, "give it a name"),
        ({"name": 3}, "site 3: give it a name"),
        ({"memory": "much"}, "site 'long': memory"),
        ({"disk": -1}, "site 'long': disk"),
        ({"walltime": "soon"}, "site 'long': walltime"),
        ({"walltime": 0}, "site 'long': walltime is 0: no job could run there"),
        ({"memory": "0 GiB"}, "site 'long': memory is 0"),
        ({"cores": 0}, "cores=0: give a whole number of at least 1"),
        ({"cores": 1.5}, "cores=1.5: give a whole number"),
        ({"nodes": True}, "nodes=True: give a whole number"),
        ({"gpus": -1}, "gpus=-1: give a whole number of at least 0"),
        ({"extra": 5}, "site 'long': extra=5"),
        ({"extra": ["--a", 5]}, "site 'long': extra="),
    ],
)
def test_a_bad_site_is_refused_by_name(given: dict[str, Any], told: str) -> None:
    site: Any = Site
    with pytest.raises(WorkflowError) as caught:
        site(**{"name": "long", **given})
    assert told in str(caught.value)
    assert str(caught.value).startswith("site ")


# --- filters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"cores": 32}, "asks for 32 cores and it has 16 cores"),
        ({"cores": 4, "ranks_per_node": 8}, "asks for 32 cores and it has 16 cores"),
        ({"memory": 65 * GIB}, "asks for 65 GiB of memory and it has 64 GiB of memory"),
        ({"walltime": 7200.0}, "asks for 7200 s of walltime and it has 3600 s of walltime"),
        ({"gpus": 4}, "asks for 4 GPUs and it has 2 GPUs"),
        ({"disk": 200 * GIB}, "asks for 200 GiB of disk and it has 100 GiB of disk"),
        ({"nodes": 5}, "asks for 5 nodes at once and it has 4 nodes at once"),
    ],
)
def test_each_filter_says_whom_it_turns_away(asked: dict[str, Any], told: str) -> None:
    assert misfit(Resources(**asked), NODE) == told
    assert slots_per_node(Resources(**asked), NODE) == 0


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert misfit(Resources(cores=32, gpus=4), NODE) == (
        "asks for 32 cores and it has 16 cores; asks for 4 GPUs and it has 2 GPUs"
    )


def test_what_just_fits_and_what_is_not_told_fit() -> None:
    most = Resources(cores=16, memory=64 * GIB, walltime=3600.0, disk=100 * GIB, gpus=2, nodes=4)
    assert misfit(most, NODE) == ""
    assert slots_per_node(most, NODE) == 1
    silent = Site("somewhere")
    assert misfit(replace(most, cores=10**6), silent) == ""
    assert slots_per_node(replace(most, cores=10**6), silent) == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [(1, "1 B"), (1536, "1.5 KiB"), (3 * 2**20, "3 MiB"), (2 * GIB, "2 GiB"), (2**41, "2 TiB")],
)
def test_sizes_are_read_aloud_in_their_own_unit(value: int, said: str) -> None:
    told = misfit(Resources(memory=value + 1), Site("small", memory=value))
    assert told.endswith(f"it has {said} of memory")


@given(resources, sites, st.sampled_from([f.name for f in fields(Resources)]))
def test_asking_for_less_is_never_refused_for_more(wish: Resources, site: Site, field: str) -> None:
    """What a site takes it takes also when a job asks for less of one thing."""
    if misfit(wish, site):
        return
    less = replace(wish, **{field: getattr(Resources(), field)})
    assert misfit(less, site) == ""
    assert slots_per_node(less, site) >= slots_per_node(wish, site)


# --- slots --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "slots"),
    [
        ({}, 16),
        ({"cores": 3}, 5),
        ({"cores": 2, "ranks_per_node": 2}, 4),
        ({"memory": 10 * GIB}, 6),
        ({"gpus": 1}, 2),
        ({"disk": 50 * GIB}, 2),
        ({"cores": 3, "memory": 20 * GIB}, 3),
    ],
)
def test_slots_are_what_the_scarcest_thing_allows(asked: dict[str, Any], slots: int) -> None:
    assert slots_per_node(Resources(**asked), NODE) == slots


@given(resources, sites)
def test_the_slots_of_a_node_fit_into_it(wish: Resources, site: Site) -> None:
    slots = slots_per_node(wish, site)
    assert (slots == 0) == bool(misfit(wish, site))
    if slots and site.cores is not None:
        assert slots * cores_on_node(wish) <= site.cores
    if slots and site.memory is not None and wish.memory is not None:
        assert slots * wish.memory <= site.memory


# --- weights ------------------------------------------------------------------------------


def test_an_empty_site_counts_its_slots() -> None:
    assert weight(Resources(), NODE, Load()) == 65.0  # 4 nodes of 16 slots
    assert weight(Resources(), Site("unknown"), Load()) == 2.0


def test_where_jobs_wait_is_worse() -> None:
    busy = Load(running=64, waiting=64)
    assert weight(Resources(), NODE, busy) == pytest.approx(65 / 129)


def test_a_site_that_spoils_half_its_jobs_weighs_half() -> None:
    spoiled = weight(Resources(), NODE, Load(finished=99, lost=100))
    assert spoiled == pytest.approx(weight(Resources(), NODE, Load()) / 2)


@given(resources, sites, loads, st.integers(0, 1000))
def test_more_waiting_never_raises_the_weight(
    wish: Resources, site: Site, load: Load, more: int
) -> None:
    then = replace(load, waiting=load.waiting + more)
    assert 0 < weight(wish, site, then) <= weight(wish, site, load)


@given(resources, sites, loads, st.integers(0, 1000))
def test_more_losses_never_raise_it_and_more_successes_never_lower_it(
    wish: Resources, site: Site, load: Load, more: int
) -> None:
    now = weight(wish, site, load)
    assert weight(wish, site, replace(load, lost=load.lost + more)) <= now
    assert weight(wish, site, replace(load, finished=load.finished + more)) >= now


@given(resources, sites, loads)
def test_a_node_more_never_lowers_the_weight(wish: Resources, site: Site, load: Load) -> None:
    larger = replace(site, nodes=(site.nodes or 1) + 1)
    assert weight(wish, larger, load) >= weight(wish, replace(site, nodes=site.nodes or 1), load)


# --- ranking ------------------------------------------------------------------------------


@given(resources, several, st.dictionaries(st.text("abcdefgh", max_size=3), loads))
def test_every_site_is_ranked_or_refused(
    wish: Resources, given: list[Site], known: dict[str, Load]
) -> None:
    ranking = rank(wish, given, known)
    weights = [number for _, number in ranking.sites]
    assert weights == sorted(weights, reverse=True)
    assert {site.name for site, _ in ranking.sites} | set(ranking.refused) == {
        site.name for site in given
    }
    assert not {site.name for site, _ in ranking.sites} & set(ranking.refused)
    for site, number in ranking.sites:
        assert number == weight(wish, site, known.get(site.name, Load()))


def test_among_equals_the_earlier_is_preferred() -> None:
    twins = [replace(NODE, name="a"), replace(NODE, name="b")]
    assert [site.name for site, _ in rank(Resources(), twins).sites] == ["a", "b"]
    assert [site.name for site, _ in rank(Resources(), twins[::-1]).sites] == ["b", "a"]


def test_jobs_spread_over_sites_as_they_fill() -> None:
    """Sent one by one to the best site, they end up in proportion to the slots."""
    big, small = replace(NODE, name="big", nodes=3), replace(NODE, name="small", nodes=1)
    load = {"big": Load(), "small": Load()}
    for _ in range(400):
        best = rank(Resources(), [small, big], load).sites[0][0].name
        load[best] = replace(load[best], waiting=load[best].waiting + 1)
    assert load["big"].waiting == pytest.approx(300, abs=5)


def test_the_ranking_is_read_aloud() -> None:
    short = Site("short", cores=4, nodes=2)
    assert rank(Resources(cores=8), [short, NODE]).describe() == (
        "may run at long (weight 9); not at short: asks for 8 cores and it has 4 cores"
    )
    assert rank(Resources(cores=2), [short, NODE]).describe() == (
        "may run at long (weight 33), short (weight 5)"
    )
    assert rank(Resources(cores=99), [short]).describe() == (
        "not at short: asks for 99 cores and it has 4 cores"
    )
    assert Ranking((), {}).describe() == "no site is known"
    full = {"long": Load(running=64, waiting=999)}
    assert "long (weight 0.061)" in rank(Resources(), [NODE], full).describe()
