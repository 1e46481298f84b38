from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pandaflow.grid.messages import Acquire, Needs
from pandaflow.grid.pool.matching import Kind, Ready, Shelf, serve, suits

NEEDS = st.builds(
    Needs,
    cores=st.integers(1, 4),
    gpus=st.integers(0, 2),
    memory=st.none() | st.integers(0, 50),
    disk=st.none() | st.integers(0, 50),
    near=st.sampled_from([(), ("q",), ("elsewhere",)]),
)
ASKS = st.builds(
    Acquire,
    pilot=st.just("p"),
    queue=st.just("q"),
    cores=st.integers(0, 20),
    gpus=st.integers(0, 4),
    memory=st.none() | st.integers(0, 100),
    disk=st.none() | st.integers(0, 100),
)


def shelves(kinds: list[Needs], ranks: list[list[int]], size: int) -> list[Shelf]:
    """Shelves that fetch `size` bundles at first, as the pool's do."""
    made = []
    for no, (needs, of_kind) in enumerate(zip(kinds, ranks, strict=True)):
        rows = sorted(
            (Ready(rank, 100 * no + at, 1) for at, rank in enumerate(of_kind)),
            key=lambda row: (row.rank, row.id),
        )

        def more(size: int, last: Ready, rows: list[Ready] = rows) -> list[Ready]:
            at = rows.index(last) + 1
            return rows[at : at + size]

        made.append(Shelf(Kind(no, "", needs), rows[:size], size, more))
    return made


def plainly(ask: Acquire, kinds: list[Needs], ranks: list[list[int]], count: int) -> list[int]:
    """The same by trying all bundles in order; a class that found no room is out."""
    order = sorted(
        (ask.queue not in kinds[no].near, rank, 100 * no + at, no)
        for no, of_kind in enumerate(ranks)
        for at, rank in enumerate(of_kind)
    )
    left = {name: getattr(ask, name) for name in ("cores", "gpus", "memory", "disk")}
    got, out = [], set()
    for _, _, id, no in order:
        asked = {name: getattr(kinds[no], name) or 0 for name in left}
        needed = {name: getattr(kinds[no], name) for name in left}
        if no in out or len(got) == count:
            continue
        if any(
            needed[name] is not None and left[name] is not None and needed[name] > left[name]
            for name in left
        ):
            out.add(no)
            continue
        left = {n: None if left[n] is None else left[n] - asked[n] for n in left}
        got.append(id)
    return got


@given(st.data())
def test_serving_is_trying_all_in_order(data):
    kinds = data.draw(st.lists(NEEDS, min_size=1, max_size=4))
    ranks = [data.draw(st.lists(st.integers(-3, 3), max_size=8)) for _ in kinds]
    ask, count = data.draw(ASKS), data.draw(st.integers(0, 12))
    size = data.draw(st.integers(1, 4))
    taken, free = serve(ask, shelves(kinds, ranks, size), count)
    assert [ready.id for ready in taken] == plainly(ask, kinds, ranks, count)
    assert free == ask.cores - sum(kinds[ready.id // 100].cores for ready in taken) >= 0


@given(NEEDS, ASKS)
def test_what_suits_fits_alone(needs, ask):
    kind = Kind(0, "", needs)
    taken, _ = serve(ask, shelves([needs], [[0]], 1), 1)
    assert suits(kind, "", ask, frozenset()) == bool(taken)
    assert not suits(kind, "another", ask, frozenset())
