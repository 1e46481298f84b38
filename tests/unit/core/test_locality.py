"""Where a job goes that reads data: filters, parts of the weight, deals, moves of data."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pandaflow.core import brokerage
from pandaflow.core.brokerage import Load, Site
from pandaflow.core.dealing import SHOWN, deal
from pandaflow.core.errors import WorkflowError
from pandaflow.core.locality import (
    TAPE_SHARE,
    Block,
    Broker,
    Placement,
    Request,
    Score,
    blocks,
    wait_seconds,
)
from pandaflow.core.model import Resources
from pandaflow.core.network import FARTHEST, UNKNOWN, Network
from pandaflow.core.quantities import size_text, time_text, volume_text
from pandaflow.core.relocation import MoveData, Queue, StayPut, decide, drained

GB = 10**9
RSES = ("A-DISK", "A-TAPE", "B-DISK", "C-DISK", "D-DISK")
A = Site("A", cores=16, nodes=4, rses=("A-DISK", "A-TAPE"))
B = Site("B", cores=16, nodes=4, rses=("B-DISK",))
C = Site("C", cores=16, nodes=4, rses=("C-DISK",))
NEAR = Network(
    distances={("A-DISK", "B-DISK"): 1, ("A-DISK", "C-DISK"): 9, ("A-TAPE", "A-DISK"): 1},
    rate=100e6,
    overhead=0.0,
)


def on_disk(size: int, *rses: str, name: str = "") -> Block:
    return Block(size, 1, frozenset(rses), name=name)


def on_tape(size: int, *rses: str) -> Block:
    return Block(size, 1, tape=frozenset(rses))


def read(*given: Block, seconds: float = 3600.0, **asked: Any) -> Request:
    return Request(Resources(**asked), given, seconds)


def score(broker: Broker, request: Request, name: str) -> Score:
    return {each.site.name: each for each in broker.place(request).scores}[name]


# --- strategies ---------------------------------------------------------------------------

counts = st.integers(0, 1000)
loads = st.builds(Load, running=counts, waiting=counts, finished=counts, lost=counts)
some_rses = st.frozensets(st.sampled_from(RSES), max_size=3)
files = st.builds(
    Block, st.integers(0, 10**13), st.integers(1, 50), some_rses, some_rses, st.sampled_from("xy")
)
requests = st.builds(
    Request,
    st.builds(Resources, cores=st.integers(1, 20), disk=st.none() | st.integers(1, 10**13)),
    st.lists(files, max_size=4).map(blocks),
    st.floats(1, 1e6),
)
sites = st.lists(
    st.builds(
        Site,
        st.text("abcdef", min_size=1, max_size=2),
        cores=st.none() | st.integers(1, 32),
        nodes=st.none() | st.integers(1, 9),
        disk=st.none() | st.integers(1, 10**14),
        rses=some_rses.map(sorted).map(tuple),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda site: site.name,
)
pairs = st.tuples(st.sampled_from(RSES), st.sampled_from(RSES))
networks = st.builds(
    Network,
    distances=st.dictionaries(pairs, st.integers(0, 20)),
    rates=st.dictionaries(pairs, st.floats(1e3, 1e10)),
    queued=st.dictionaries(pairs, st.integers(0, 10**13)),
    overhead=st.floats(0, 100),
    complete=st.booleans(),
)


@st.composite
def brokers(draw: st.DrawFn) -> Broker:
    given = draw(sites)
    some = draw(st.dictionaries(st.sampled_from([s.name for s in given]), loads))
    held = draw(st.dictionaries(st.sampled_from([s.name for s in given]), st.just("it is offline")))
    return Broker(given, some, draw(networks), held, draw(st.booleans()))


# --- storage elements of a site -----------------------------------------------------------


def test_storage_elements_are_parsed() -> None:
    site: Any = Site
    assert site("a", rses="CERN-PROD_DATADISK").rses == ("CERN-PROD_DATADISK",)
    assert site("a", rses=["X", "Y"]).rses == ("X", "Y")
    assert site("a").rses == ()


@pytest.mark.parametrize("bad", [5, [5], [""], ["A&B"], ["tier=1"], ["A", "A"], "A B", [" A"]])
def test_bad_storage_elements_are_refused(bad: Any) -> None:
    site: Any = Site
    with pytest.raises(WorkflowError, match=r"^site 'a': rses="):
        site("a", rses=bad)


# --- filters ------------------------------------------------------------------------------


def refusals(broker: Broker, request: Request) -> dict[str, str]:
    return dict(broker.place(request).refused)


def test_what_does_not_fit_or_is_held_is_refused() -> None:
    broker = Broker([A, B], held={"B": "it is offline"})
    assert refusals(broker, read(cores=32)) == {
        "A": "asks for 32 cores and it has 16 cores",
        "B": "it is offline",
    }


def test_inputs_must_fit_onto_a_node() -> None:
    small = replace(A, disk=10 * GB)
    request = read(on_disk(8 * GB, "A-DISK"), disk=4 * GB)
    assert refusals(Broker([small, B]), request) == {
        "A": "needs 12 GB of disk, 8 GB of it for inputs, and it has 10 GB"
    }


def test_data_without_a_replica_goes_nowhere() -> None:
    lost = Block(GB, 3, name="mc:x")
    placement = Broker([A, B]).place(read(on_disk(GB, "A-DISK"), lost))
    assert placement.scores == ()
    assert placement.refused["B"] == "no replica of 3 files of mc:x is known"


def test_where_no_path_leads_is_refused_if_all_paths_are_known() -> None:
    request = read(on_disk(GB, "B-DISK"))
    assert refusals(Broker([A, B], network=NEAR), request) == {}
    assert refusals(Broker([A, B], network=replace(NEAR, complete=True)), request) == {
        "A": "no transfer path from B-DISK to A-DISK or A-TAPE for a file"
    }


def test_without_transfers_data_must_be_there_on_disk_or_tape() -> None:
    request = read(on_disk(GB, "B-DISK"), on_tape(GB, "A-TAPE"))
    refused = refusals(Broker([A, B], transfers=False), request)
    assert refused == {name: "a file is not there, and transfers are off" for name in "AB"}
    assert refusals(Broker([A], transfers=False), read(on_tape(GB, "A-TAPE"))) == {}


def test_a_site_that_spoils_much_is_avoided_if_there_is_another() -> None:
    bad = Load(finished=2, lost=6)
    assert refusals(Broker([A, B], {"A": bad}), read()) == {
        "A": "it has spoiled 6 of the last 8 attempts"
    }
    assert refusals(Broker([A, B], {"A": replace(bad, lost=5)}), read()) == {}
    both = Broker([A, B], {"A": bad, "B": bad}).place(read())
    assert len(both.scores) == 2


def test_what_was_spoiled_is_forgotten() -> None:
    bad = Load(running=3, finished=2, lost=6)
    faded = bad.fade(6 * 3600.0)
    assert faded == Load(running=3, finished=1, lost=3)
    assert refusals(Broker([A, B], {"A": faded}), read()) == {}
    assert bad.fade(-5.0) == bad


# --- parts of the weight ------------------------------------------------------------------


def test_data_on_disk_tape_and_elsewhere() -> None:
    request = read(on_disk(3 * GB, "A-DISK"), on_tape(GB, "A-TAPE"))
    here, near, far = (score(Broker([A, B, C], network=NEAR), request, n) for n in "ABC")
    assert (here.disk, here.tape, here.total) == (3 * GB, GB, 4 * GB)
    assert here.parts.data == pytest.approx((4 + 3 + TAPE_SHARE) / 8)
    assert near.parts.data == far.parts.data == 0.5
    assert here.weight > near.weight > far.weight


def test_distance_halves_at_most_and_unknown_is_rather_far() -> None:
    def closeness(distance: int | None) -> float:
        pair = ("A-DISK", "B-DISK")
        network = Network({} if distance is None else {pair: distance})
        request = read(on_disk(GB, "A-DISK"))
        return score(Broker([B], network=network), request, "B").parts.distance

    assert closeness(0) == 1.0
    assert closeness(FARTHEST) == closeness(99) == 0.5
    assert closeness(7) > closeness(None) > closeness(8)
    assert closeness(None) == pytest.approx(1 - UNKNOWN / FARTHEST / 2)


def test_the_transfer_counts_against_the_length_of_the_job() -> None:
    data = on_disk(100 * GB, "A-DISK")  # 1,000 s at 100 MB/s
    long, short = read(data, seconds=9000.0), read(data, seconds=250.0)
    broker = Broker([B], network=NEAR)
    assert score(broker, long, "B").fetch == pytest.approx(1000.0)
    assert score(broker, long, "B").parts.transfer == pytest.approx(0.9)
    assert score(broker, short, "B").parts.transfer == pytest.approx(0.2)


def test_what_waits_on_a_link_and_what_was_measured_there_count() -> None:
    pair = ("A-DISK", "B-DISK")
    busy = replace(NEAR, queued={pair: 50 * GB}, overhead=7.0)
    request = read(on_disk(100 * GB, "A-DISK"))
    assert score(Broker([B], network=busy), request, "B").fetch == pytest.approx(1507.0)
    fast = replace(busy, rates={pair: 1e9})
    assert score(Broker([B], network=fast), request, "B").fetch == pytest.approx(157.0)


def test_the_best_source_is_taken_and_tape_only_if_no_disk_has_it() -> None:
    both = Block(100 * GB, 1, frozenset({"A-DISK", "C-DISK"}), frozenset({"A-TAPE"}))
    broker = Broker([A, B], network=NEAR)
    assert score(broker, read(both), "B").fetch == pytest.approx(1000.0)
    tape = read(on_tape(100 * GB, "A-TAPE"))
    assert score(broker, tape, "A").fetch == pytest.approx(1000.0 + NEAR.tape)


def test_a_site_without_storage_reads_from_afar() -> None:
    bare = Site("bare", cores=4)
    found = score(
        Broker([bare], network=replace(NEAR, complete=True)), read(on_disk(GB, "A-DISK")), "bare"
    )
    assert found.disk == 0
    assert found.parts.distance == pytest.approx(1 - UNKNOWN / FARTHEST / 2)


@given(brokers(), requests)
def test_every_site_is_scored_or_refused_and_never_both(broker: Broker, request: Request) -> None:
    placement = broker.place(request)
    scored = [each.site.name for each in placement.scores]
    assert Counter([*scored, *placement.refused]) == Counter(s.name for s in broker.sites)
    assert all(placement.refused.values())
    weights = [each.weight for each in placement.scores]
    assert weights == sorted(weights, reverse=True)
    for each in placement.scores:
        assert 0 < each.weight < math.inf
        assert all(0 < part <= 1 for part in each.parts[1:])
        assert 0 <= each.disk + each.tape <= each.total


@given(brokers(), requests)
def test_the_order_of_sites_decides_between_equals_only(broker: Broker, request: Request) -> None:
    there = broker.place(request)
    back = replace(broker, sites=list(broker.sites)[::-1]).place(request)
    assert {s.site.name: s for s in there.scores} == {s.site.name: s for s in back.scores}
    assert there.refused == back.refused
    place = {site.name: at for at, site in enumerate(broker.sites)}
    order = [(-each.weight, place[each.site.name]) for each in there.scores]
    assert order == sorted(order)


@given(brokers(), st.integers(1, 20))
def test_without_data_the_weight_is_that_of_brokerage(broker: Broker, cores: int) -> None:
    request = read(cores=cores)
    for each in broker.place(request).scores:
        load = broker.loads.get(each.site.name, Load())
        assert each.weight == pytest.approx(brokerage.weight(request.resources, each.site, load))


@given(brokers(), requests, st.data())
def test_better_in_one_thing_is_never_worse(
    broker: Broker, request: Request, data: st.DataObject
) -> None:
    """Monotone in every term: bytes on disk, queue, losses, distance, rate, what waits."""
    before = broker.place(request)
    if not before.scores:
        return
    chosen = data.draw(st.sampled_from(before.scores))
    better = data.draw(st.sampled_from(list(_improvements(broker, request, chosen))))
    after = {each.site.name: each for each in better[0].place(better[1]).scores}
    assert after[chosen.site.name].weight >= chosen.weight * (1 - 1e-12), better[2]


def _improvements(broker: Broker, request: Request, chosen: Score) -> Any:
    name, load, net = chosen.site.name, chosen.load, broker.network
    for change in (
        {"waiting": load.waiting // 2},
        {"lost": load.lost / 2},
        {"finished": load.finished + 3},
    ):
        loads = {**broker.loads, name: replace(load, **change)}
        yield replace(broker, loads=loads), request, str(change)
    if chosen.site.rses:
        local = chosen.site.rses[0]
        moved = tuple(block._replace(disk=block.disk | {local}) for block in request.blocks)
        yield broker, replace(request, blocks=moved), "a copy on disk here"
    nearer = {pair: distance // 2 for pair, distance in net.distances.items()}
    yield replace(broker, network=replace(net, distances=nearer)), request, "nearer"
    yield replace(broker, network=replace(net, rate=2 * net.rate)), request, "faster"
    idle = replace(net, queued={}, overhead=0.0)
    yield replace(broker, network=idle), request, "idle links"


@given(brokers(), requests, st.integers(2, 1000))
def test_units_do_not_matter(broker: Broker, request: Request, scale: int) -> None:
    """Bytes, rates and queues in another unit give the same weights."""
    network = replace(
        broker.network,
        rates={pair: rate * scale for pair, rate in broker.network.rates.items()},
        queued={pair: size * scale for pair, size in broker.network.queued.items()},
        rate=broker.network.rate * scale,
    )
    sites = [replace(s, disk=s.disk and s.disk * scale) for s in broker.sites]
    grown = replace(
        request,
        resources=replace(
            request.resources, disk=request.resources.disk and request.resources.disk * scale
        ),
        blocks=tuple(block._replace(size=block.size * scale) for block in request.blocks),
    )
    before = broker.place(request)
    after = replace(broker, sites=sites, network=network).place(grown)
    weights = {each.site.name: each.weight for each in after.scores}
    assert weights.keys() == {each.site.name for each in before.scores}
    for each in before.scores:
        assert weights[each.site.name] == pytest.approx(each.weight, rel=1e-9)


@given(st.lists(files, max_size=8))
def test_files_with_the_same_replicas_are_one_block(given_files: list[Block]) -> None:
    made = blocks(given_files)
    assert len({(b.name, b.disk, b.tape) for b in made}) == len(made)
    assert sum(b.size for b in made) == sum(b.size for b in given_files)
    assert sum(b.files for b in made) == sum(b.files for b in given_files)


# --- in words -----------------------------------------------------------------------------


def test_a_placement_is_read_aloud() -> None:
    request = read(on_disk(3 * GB, "A-DISK"), on_tape(GB, "A-TAPE"), cores=2)
    broker = Broker([B, A], network=NEAR, held={"B": "it is offline"})
    assert broker.place(request).describe() == (
        "may run at A (weight 5.8: 75 % of 4 GB on disk, 25 % on tape, the rest in 4 h); "
        "not at B: it is offline"
    )
    assert Placement((), {}).describe() == "no site is known"
    many = Broker([replace(A, name=f"s{k}") for k in range(20)]).place(read())
    assert many.describe(most=2) == "may run at s0 (weight 65), s1 (weight 65) and 18 more"
    none = Broker([replace(A, name=f"s{k}") for k in range(20)]).place(read(cores=99))
    assert none.describe(most=1).endswith("it has 16 cores; not at 19 more")


def test_a_score_is_a_row_and_a_placement_a_ranking() -> None:
    placement = Broker([A], network=NEAR).place(read(on_disk(GB, "A-DISK")))
    (found,) = placement.scores
    row = found.row()
    assert row["weight"] == found.weight == 65.0
    assert (row["site"], row["input_bytes"], row["disk_bytes"]) == ("A", GB, GB)
    assert placement.ranking.describe() == "may run at A (weight 65)"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0 s"), (119.0, "119 s"), (300.0, "5 min"), (7200.0, "2 h"), (5 * 86400.0, "5 d")],
)
def test_times_are_read_aloud_in_their_own_unit(seconds: float, said: str) -> None:
    assert time_text(seconds) == said


@pytest.mark.parametrize(
    ("value", "binary", "decimal"),
    [
        (1, "1 B", "1 B"),
        (1536, "1.5 KiB", "1.54 kB"),
        (999_999, "976.6 KiB", "1 MB"),
        (4 * 10**13, "36.38 TiB", "40 TB"),
        (2 * 10**18, "1.819e+06 TiB", "2,000 PB"),
    ],
)
def test_sizes_are_read_aloud(value: int, binary: str, decimal: str) -> None:
    assert (size_text(value), volume_text(value)) == (binary, decimal)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(WorkflowError, match="'A' is there twice"):
        Broker([A, A])
    with pytest.raises(WorkflowError, match="seconds=0"):
        read(seconds=0)
    with pytest.raises(WorkflowError, match="distance from A to B is -1"):
        Network(distances={("A", "B"): -1})
    with pytest.raises(WorkflowError, match="rate from A to B is 0"):
        Network(rates={("A", "B"): 0})
    with pytest.raises(WorkflowError, match="rate must be above 0"):
        Network(rate=0)


# --- many jobs ----------------------------------------------------------------------------


def test_equal_jobs_are_scored_once() -> None:
    request = read(on_disk(GB, "A-DISK"))
    same = read(on_disk(GB, "A-DISK"))
    other = read(on_disk(2 * GB, "A-DISK"))
    first, second, third = Broker([A, B]).place_all([request, same, other])
    assert first is second
    assert third is not first


def test_ten_thousand_jobs_are_dealt_out_over_a_thousand_sites() -> None:
    many = [replace(A, name=f"s{k}", rses=(f"R{k % 100}",)) for k in range(1000)]
    wanted = [(read(on_disk(GB, f"R{k}")), 500) for k in range(20)]
    dealt = deal(Broker(many), wanted)
    assert [sum(each.counts.values()) for each in dealt] == [500] * 20
    # Each fills the ten sites that have its data before any other: they are twice as good.
    for k, each in enumerate(dealt):
        local = {f"s{n}" for n in range(1000) if n % 100 == k}
        assert set(list(each.counts)[:10]) == local
        assert len(each.placement.scores) == SHOWN


def test_a_deal_fills_sites_in_proportion_and_counts_what_went_before() -> None:
    big, small = replace(A, name="big", nodes=3), replace(A, name="small", nodes=1)
    first, second = deal(Broker([small, big]), [(read(), 200), (read(cores=1), 200)])
    together = Counter(first.counts) + Counter(second.counts)
    assert together["big"] == pytest.approx(300, abs=5)
    assert sum(together.values()) == 400


@given(brokers(), st.lists(st.tuples(requests, st.integers(0, 30)), max_size=4))
def test_a_deal_is_the_same_as_one_by_one(
    broker: Broker, wanted: list[tuple[Request, int]]
) -> None:
    dealt = deal(broker, wanted)
    loads = dict(broker.loads)
    # Who is avoided for losses does not depend on what waits, so that refusals stay the same.
    for (request, count), each in zip(wanted, dealt, strict=True):
        one_by_one: Counter[str] = Counter()
        for _ in range(count):
            scores = replace(broker, loads=loads).place(request).scores
            if not scores:
                break
            order = [s.site.name for s in each.placement.scores]
            best = min(scores, key=lambda s: (-s.weight, order.index(s.site.name))).site.name
            one_by_one[best] += 1
            loads[best] = replace(
                loads.get(best, Load()), waiting=loads.get(best, Load()).waiting + 1
            )
        assert each.counts == dict(one_by_one)
        assert not set(each.counts) & set(each.placement.refused)


# --- moving data --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "jobs", "waits"),
    [
        (Load(), 1, 0.0),
        (Load(), 64, 0.0),
        (Load(), 65, 100.0),
        (Load(running=64), 1, 100.0),
        (Load(running=64, waiting=63), 1, 100.0),
        (Load(running=64, waiting=64), 1, 200.0),
        (Load(running=128, waiting=1), 1, 100.0),
    ],
)
def test_the_wait_for_a_slot(load: Load, jobs: int, waits: float) -> None:
    assert wait_seconds(load, 64, 100.0, jobs) == waits


@given(
    st.lists(st.builds(Queue, st.floats(0, 1e5), st.floats(1e-3, 1e3)), min_size=1, max_size=6),
    st.integers(1, 10**6),
)
def test_queues_have_done_their_jobs_when_they_are_drained(queues: list[Queue], jobs: int) -> None:
    ends = drained(queues, jobs)
    done = sum(queue.rate * max(0.0, ends - queue.opens) for queue in queues)
    assert done == pytest.approx(jobs, rel=1e-6, abs=1e-3)
    assert drained([*queues, Queue(10.0, 1.0)], jobs) <= ends * (1 + 1e-12)


def moved(load: Load, jobs: int = 64, size: int = 100 * GB, **more: Any) -> MoveData | StayPut:
    request = read(on_disk(size, "A-DISK", name="mc:x"), seconds=1800.0)
    broker = Broker([A, B, C], {"A": load}, replace(NEAR, **more))
    return decide(request, jobs, broker.place(request))


def test_data_moves_when_compute_is_free_elsewhere() -> None:
    decision = moved(Load(running=64, waiting=640))
    assert isinstance(decision, MoveData)
    assert (decision.site, decision.to_rse, decision.size, decision.tape) == (
        *("B", "B-DISK", 100 * GB),
        0,
    )
    assert decision.seconds == pytest.approx(1000.0)
    assert decision.moving < decision.waiting
    assert [block.name for block in decision.blocks] == ["mc:x"]
    assert decision.why.startswith("100 GB to B-DISK in 16.7 min: 64 jobs end in ")
    assert decision.why.endswith(" without")


def test_data_stays_where_slots_are_free() -> None:
    decision = moved(Load())
    assert isinstance(decision, StayPut)
    assert decision.waiting == pytest.approx(3600.0)
    assert decision.why.startswith("moving it to ")


def test_data_stays_when_the_move_takes_longer_than_the_queue() -> None:
    assert isinstance(moved(Load(running=64, waiting=64), size=10**15), StayPut)


def test_data_that_is_complete_nowhere_moves_to_where_it_ends_soonest() -> None:
    request = read(on_disk(GB, "A-DISK"), on_disk(5 * GB, "C-DISK"), on_tape(GB, "A-TAPE"))
    decision = decide(request, 10, Broker([A, B, C], network=NEAR).place(request))
    assert isinstance(decision, MoveData)
    assert decision.waiting == math.inf
    assert decision.tape in (0, GB)
    assert "complete on disk nowhere" in decision.why


def test_data_has_nowhere_to_go() -> None:
    request = read(on_disk(GB, "A-DISK"))
    everywhere = decide(request, 10, Broker([A]).place(request))
    assert everywhere == StayPut(pytest.approx(4162.5), "its data is at every site that may run it")
    bare = decide(request, 10, Broker([A, Site("bare")]).place(request))
    assert bare.why == "no site to bring it to has storage"
    nobody = decide(request, 10, Placement((), {}))
    assert isinstance(nobody, StayPut)


@settings(max_examples=50)
@given(brokers(), requests, st.integers(1, 5000))
def test_a_move_always_pays(broker: Broker, request: Request, jobs: int) -> None:
    placement = broker.place(request)
    decision = decide(request, jobs, placement)
    if isinstance(decision, StayPut):
        return
    assert decision.moving < decision.waiting
    assert decision.site in {each.site.name for each in placement.scores}
    assert 0 <= decision.tape <= decision.size
    assert all(decision.to_rse not in block.disk for block in decision.blocks)
    (chosen,) = (each for each in placement.scores if each.site.name == decision.site)
    assert decision.size == chosen.total - chosen.disk
    assert decision == decide(request, jobs, placement)
