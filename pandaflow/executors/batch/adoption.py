"""Going on with the arrays of an earlier session as if they were ours."""

from __future__ import annotations

from collections.abc import Iterable, Set

from pandaflow.executors.batch import element
from pandaflow.executors.batch.account import Account
from pandaflow.executors.batch.hearing import catch_up
from pandaflow.executors.batch.inflight import Array, Bundle, Element
from pandaflow.executors.batch.leftovers import Leftover, assignment, code_of, mark
from pandaflow.executors.batch.places import Place, cores_of


def adopt(account: Account, left: Iterable[Leftover], wanted: Set[int]) -> set[int]:
    """Enter what earlier sessions left in the queue; return the bundles that are carried on.

    Elements that carry nothing wanted are to be cancelled; of the others, bundles that are not
    wanted do not begin. What elements have said so far is heard, but for the messages of their
    jobs: those have been passed on, or nobody listened.

    Parameters
    ----------
    account : Account
    left : iterable of Leftover
        The newest first: what was taken out of an element lies in a later one.
    wanted : set of int
        Bundles that the run still waits for.
    """
    carried: set[int] = set()
    for each in left:
        array = _entered(account, each, wanted - carried)
        for one in array.elements:
            carried |= set(one.open)
        for one in array.elements:
            catch_up(account, one)
    return carried


def _entered(account: Account, left: Leftover, wanted: Set[int]) -> Array:
    array = Array(left.id, left.folder, left.size > 1, _place(account, left))
    account.arrays[array.id] = array
    for index in range(left.size):
        todo = left.todos.get(index)
        works = () if todo is None else todo.works
        kept = [w for w in works if w.spec.bundle in wanted and not left.dropped(w.spec.bundle)]
        new = Element(array, index, cores_of(works[0].spec.resources) if works else 0, [])
        array.elements.append(new)
        for work in kept:
            _enter(account, new, work)
        for work in works:
            if work not in kept:
                mark(left.folder / f"{work.spec.bundle}.drop")
        if not kept:
            account.end(new)
    return array


def _enter(account: Account, of: Element, work: element.Work) -> None:
    bundle = Bundle(assignment(work, code_of(work)), set(), of)
    account.bundles[work.spec.bundle] = bundle
    of.open.append(work.spec.bundle)


def _place(account: Account, left: Leftover) -> Place:
    """Return the site of an array; if there is none of that name any more, the first."""
    names = {todo.site for todo in left.todos.values()}
    known = [place for name, place in account.places.items() if name in names]
    return (known or list(account.places.values()))[0]
