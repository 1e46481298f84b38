"""How a node is cut into slots, and how jobs find slots that are large enough.

A pilot cuts its node into equal slots, a worker process each. A worker declares what its slot
has as resources of Dask, and a job declares what it needs, so Dask's scheduler places jobs only
where they fit, whatever pilots are there at the moment.
"""

from __future__ import annotations

import json
from dataclasses import asdict, astuple, dataclass

from pandaflow.core.brokerage import Site, cores_on_node, slots_per_node
from pandaflow.core.errors import DataError
from pandaflow.core.model import Resources

#: What a slot offers where its site does not say how much there is.
_ENOUGH = 2.0**62
#: Jobs without GPUs need this; slots with GPUs do not offer it, so that they stay free for others.
PLAIN = "plain"
#: Seconds that a worker has left. It lowers this when a job came that could not end in time.
WALLTIME = "walltime"


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """An equal share of a node.

    Attributes
    ----------
    count : int
        Slots on a node.
    cores, gpus : int
        Of one slot.
    memory, disk : int
        Bytes of one slot; 0: its site does not say.
    """

    count: int
    cores: int = 1
    gpus: int = 0
    memory: int = 0
    disk: int = 0

    @property
    def tag(self) -> str:
        """A short name for it, without dashes."""
        return "x".join(map(str, astuple(self)))

    def dump(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Slot:
        """Parse what :meth:`dump` wrote.

        Raises
        ------
        DataError
            It is something else.
        """
        try:
            return cls(**{name: int(value) for name, value in json.loads(text).items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{text!r} is no slot: {error}") from error


def slot_of(resources: Resources, site: Site) -> Slot | None:
    """Return the slot for such jobs: a node is shared by as many as fit; None: it takes none."""
    count = slots_per_node(resources, site)
    if not count:
        return None
    return Slot(
        count=count,
        cores=max((site.cores or 1) // count, cores_on_node(resources)),
        gpus=max((site.gpus or 0) // count, resources.gpus) if resources.gpus else 0,
        memory=(site.memory or 0) // count,
        disk=(site.disk or 0) // count,
    )


def offers(slot: Slot, seconds: float) -> dict[str, float]:
    """Return what a worker declares that has ``seconds`` left."""
    return {
        "cores": float(slot.cores),
        "memory": float(slot.memory or _ENOUGH),
        "disk": float(slot.disk or _ENOUGH),
        WALLTIME: max(0.0, seconds),
        **({"gpus": float(slot.gpus)} if slot.gpus else {PLAIN: 1.0}),
    }


def needs(resources: Resources) -> dict[str, float]:
    """Return what a job's node of the Dask graph asks for."""
    asked = {
        "cores": cores_on_node(resources),
        "memory": resources.memory,
        "disk": resources.disk,
        WALLTIME: resources.walltime,
        **({"gpus": resources.gpus} if resources.gpus else {PLAIN: 1}),
    }
    return {name: float(amount) for name, amount in asked.items() if amount}


def serves(slot: Slot, resources: Resources) -> bool:
    """Tell whether such a job can run in a slot, if there is time."""
    there = offers(slot, _ENOUGH)
    return all(amount <= there.get(name, 0.0) for name, amount in needs(resources).items())
