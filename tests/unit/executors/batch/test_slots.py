"""How nodes are cut: what a job needs, its slot offers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.brokerage import Site, misfit
from pandaflow.core.errors import DataError
from pandaflow.core.model import Resources
from pandaflow.executors.batch.slots import PLAIN, WALLTIME, Slot, needs, offers, serves, slot_of

GB = 10**9

amounts = st.one_of(st.none(), st.integers(1, 2**50))
sites = st.builds(
    Site,
    st.just("s"),
    cores=st.one_of(st.none(), st.integers(1, 300)),
    memory=amounts,
    disk=amounts,
    gpus=st.one_of(st.none(), st.integers(0, 8)),
    walltime=st.one_of(st.none(), st.floats(1.0, 1e6)),
)
asked = st.builds(
    Resources,
    cores=st.integers(1, 300),
    memory=amounts,
    disk=amounts,
    gpus=st.integers(0, 8),
    walltime=st.one_of(st.none(), st.floats(1.0, 1e6)),
    ranks_per_node=st.integers(1, 3),
)
SITE = Site("s", cores=8, memory=32 * GB, gpus=2, disk=100 * GB, walltime=3600)


@given(asked, sites)
def test_a_job_that_fits_a_site_fits_the_slot_that_is_made_for_it(
    resources: Resources, site: Site
) -> None:
    slot = slot_of(resources, site)
    if misfit(resources, site):
        assert slot is None
        return
    assert slot is not None
    there = offers(slot, site.walltime or 1e9)
    assert all(amount <= there.get(name, 0.0) for name, amount in needs(resources).items())


@given(asked, asked, sites)
def test_a_slot_serves_what_it_was_made_for_and_what_is_smaller(
    large: Resources, small: Resources, site: Site
) -> None:
    slot = slot_of(large, site)
    if slot is None:
        return
    assert serves(slot, large)
    there = offers(slot, math.inf)
    fits = all(amount <= there.get(name, 0.0) for name, amount in needs(small).items())
    assert serves(slot, small) == fits


@given(asked, sites)
def test_the_slots_of_a_node_are_no_more_than_the_node(resources: Resources, site: Site) -> None:
    slot = slot_of(resources, site)
    if slot is None:
        return
    for each, whole in (
        (slot.cores, site.cores),
        (slot.memory, site.memory),
        (slot.gpus, site.gpus),
        (slot.disk, site.disk),
    ):
        assert whole is None or each * slot.count <= whole


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (Resources(), Slot(8, 1, 0, 4 * GB, 12_500_000_000)),
        (Resources(cores=2), Slot(4, 2, 0, 8 * GB, 25 * GB)),
        (Resources(cores=3), Slot(2, 4, 0, 16 * GB, 50 * GB)),
        (Resources(memory=10 * GB), Slot(3, 2, 0, 32 * GB // 3, 100 * GB // 3)),
        (Resources(gpus=1), Slot(2, 4, 1, 16 * GB, 50 * GB)),
        (Resources(gpus=2), Slot(1, 8, 2, 32 * GB, 100 * GB)),
        (Resources(disk=60 * GB), Slot(1, 8, 0, 32 * GB, 100 * GB)),
        (Resources(cores=9), None),
        (Resources(walltime=3601), None),
        (Resources(gpus=3), None),
    ],
)
def test_slots(resources: Resources, expected: Slot | None) -> None:
    assert slot_of(resources, SITE) == expected


def test_slots_with_gpus_are_for_jobs_with_gpus_only() -> None:
    plain, gpu = offers(Slot(2), 60.0), offers(Slot(2, gpus=1), 60.0)
    assert PLAIN in needs(Resources()) and PLAIN in plain and PLAIN not in gpu
    assert PLAIN not in needs(Resources(gpus=1)) and "gpus" not in plain


def test_what_is_not_asked_for_is_not_needed() -> None:
    assert needs(Resources()) == {"cores": 1.0, PLAIN: 1.0}
    assert needs(Resources(cores=2, walltime=5.0)) == {"cores": 2.0, WALLTIME: 5.0, PLAIN: 1.0}


def test_a_pilot_that_is_late_offers_no_negative_time() -> None:
    assert offers(Slot(1), -3.0)[WALLTIME] == 0.0


@given(st.builds(Slot, *[st.integers(1, 2**60)] * 5))
def test_text_and_back(slot: Slot) -> None:
    assert Slot.parse(slot.dump()) == slot


def test_tags_tell_slots_apart() -> None:
    assert Slot(2, cores=3).tag == "2x3x0x0x0" != Slot(2, 3, 1).tag


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", "{}", '{"count": "x"}', '{"count": 1, "more": 2}']
)
def test_what_is_no_slot(text: str) -> None:
    with pytest.raises(DataError, match="is no slot"):
        Slot.parse(text)
