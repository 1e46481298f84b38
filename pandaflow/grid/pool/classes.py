"""Rows of ``pool_classes``: bundles of equal needs and VO, matched alike."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from pandaflow.grid.messages import Needs
from pandaflow.grid.pool.matching import Kind
from pandaflow.grid.pool.session import Session, inserting
from pandaflow.store.pool_tables import pool_classes

#: Seconds after which it is written down again that a class is used.
_FRESH = 3600.0
#: Classes that are remembered.
_KEPT = 10_000

_FIND = "SELECT digest, no, used FROM pool_classes WHERE digest AMONG :digests[text]"
_ADD = inserting(
    pool_classes,
    *("vo", "digest", "needs", "used"),
    conflict="ON CONFLICT (digest) DO UPDATE SET used = excluded.used "
    f"WHERE pool_classes.used < excluded.used - {_FRESH}",
)


def enter(session: Session, vo: str, needs: Iterable[Needs], now: float) -> dict[Needs, int]:
    """Return the numbers of classes; those that were not there are made."""
    texts = {each: each.model_dump_json(exclude_defaults=True) for each in needs}
    digests = {each: sha256(f"{vo}\0{text}".encode()).hexdigest() for each, text in texts.items()}
    wanted = list(digests.values())
    known = {
        digest for digest, _, used in session.rows(_FIND, digests=wanted) if used > now - _FRESH
    }
    # Only what is new: whoever adds a class locks its row. And in order, so that two submissions
    # do not wait for each other.
    rows = [(vo, digests[each], text, now) for each, text in texts.items()]
    session.many(_ADD, sorted(row for row in rows if row[1] not in known))
    numbers = {digest: no for digest, no, _ in session.rows(_FIND, digests=wanted)}
    return {each: numbers[digest] for each, digest in digests.items()}


class Classes:
    """What is known of classes. Rows never change and numbers are not given again."""

    def __init__(self) -> None:
        self._known: dict[int, Kind] = {}

    def get(self, session: Session, numbers: Iterable[int]) -> dict[int, Kind]:
        """Return classes by number; those that are gone are left out."""
        known, wanted = self._known, set(numbers)
        new = [no for no in wanted if no not in known]
        if new:
            if len(known) > _KEPT:
                # Another dict, not this one emptied: other threads read it.
                known = self._known = {}
                new = list(wanted)
            rows = session.rows(
                "SELECT no, vo, needs FROM pool_classes WHERE no AMONG :new[bigint]", new=new
            )
            known.update(
                (no, Kind(no, vo, Needs.model_validate_json(text))) for no, vo, text in rows
            )
        return {no: known[no] for no in wanted if no in known}
