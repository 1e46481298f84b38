"""Rows of the benchmark table and how they are measured and printed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what was measured, against which yardstick of the same run, and the budget."""

    what: str
    measured: str
    yardstick: str
    ratio: str
    budget: str
    kept: bool | None


@dataclass(frozen=True, slots=True)
class Spent:
    """Wall and CPU seconds (of this process and all its children) of some work."""

    wall: float
    cpu: float
    value: Any = None


def cpu_of_tree() -> float:
    """Return the CPU seconds of this process and its descendants, those that ended included."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def spend(work: Callable[[], Any]) -> Spent:
    """Do some work and measure it."""
    cpu, wall = cpu_of_tree(), time.perf_counter()
    value = work()
    return Spent(time.perf_counter() - wall, cpu_of_tree() - cpu, value)


def machine() -> str:
    """Describe this machine in a line."""
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    kernel = f"{platform.system()} {platform.release().partition('-')[0]}"
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {kernel}, "
        f"Python {platform.python_version()}, load {load:.1f} at the start"
    )


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [
        "| what | measured | yardstick, same run | ratio | budget | kept |",
        "|---|---|---|---|---|---|",
    ]
    words = {True: "yes", False: "NO", None: ""}
    for row in rows:
        cells = (row.what, row.measured, row.yardstick, row.ratio, row.budget, words[row.kept])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
