"""What of the node is free."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pandaflow_pilot.leases import Needs
from pandaflow_pilot.settings import Node


@dataclass(frozen=True)
class Slot:
    """A share of the node: a number of cores, bytes, and named GPUs."""

    cores: int
    memory: int
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Free:
    """What is free: counts, bytes (None: not limited)."""

    cores: int
    memory: int | None
    gpus: int


class Slots:
    """Gives shares of the node away and takes them back; for several threads."""

    def __init__(self, node: Node) -> None:
        self._node, self._lock = node, threading.Lock()
        self._cores, self._memory, self._gpus = node.cores, node.memory, list(node.gpus)

    def free(self) -> Free:
        """Tell what is free."""
        with self._lock:
            return Free(self._cores, self._memory, len(self._gpus))

    def take(self, needs: Needs) -> Slot | None:
        """Return a share, None if there is not enough."""
        with self._lock:
            memory = (needs.memory or 0) if self._memory is not None else 0
            short = self._memory is not None and memory > self._memory
            if short or needs.cores > self._cores or needs.gpus > len(self._gpus):
                return None
            gpus = tuple(self._gpus[: needs.gpus])
            del self._gpus[: needs.gpus]
            self._cores -= needs.cores
            if self._memory is not None:
                self._memory -= memory
            return Slot(needs.cores, memory, gpus)

    def give_back(self, slot: Slot) -> None:
        """Take a share back."""
        with self._lock:
            self._cores += slot.cores
            self._gpus += slot.gpus
            if self._memory is not None:
                self._memory += slot.memory
