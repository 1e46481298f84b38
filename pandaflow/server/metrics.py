"""Counts and times of requests, as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
#: Upper ends in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Metrics:
    """What one instance has served since it began. Use it in one thread."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()

    def served(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Parameters
        ----------
        method : str
        route : str
            The pattern of its path: there are few.
        status : int
        seconds : float
            From its first byte to the end of its answer, long polls included.
        """
        self._requests[method, route, status] += 1
        buckets = self._buckets.get(route)
        if buckets is None:
            buckets = self._buckets[route] = [0] * (len(BUCKETS) + 1)
        buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]

    def text(self, gauges: Mapping[str, float], counters: Mapping[str, float]) -> str:
        """Return everything as text, with further numbers by name."""
        lines = [
            "# HELP pandaflow_requests_total Requests by route and status.",
            "# TYPE pandaflow_requests_total counter",
        ]
        lines += (
            f"pandaflow_requests_total{_labels(method=method, route=route, status=status)} {count}"
            for (method, route, status), count in sorted(self._requests.items())
        )
        lines += self._histogram()
        lines += _plain(gauges, "gauge")
        lines += _plain(counters, "counter")
        return "\n".join(lines) + "\n"

    def _histogram(self) -> Iterator[str]:
        name = "pandaflow_request_seconds"
        yield f"# HELP {name} Seconds that requests took."
        yield f"# TYPE {name} histogram"
        for route, counts in sorted(self._buckets.items()):
            total = 0
            for end, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
                total += count
                yield f"{name}_bucket{_labels(route=route, le=end)} {total}"
            yield f"{name}_sum{_labels(route=route)} {self._seconds[route]:.6f}"
            yield f"{name}_count{_labels(route=route)} {total}"


def _labels(**values: object) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items()) + "}"


def _escaped(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _plain(numbers: Mapping[str, float], kind: str) -> Iterable[str]:
    for name, value in sorted(numbers.items()):
        yield f"# TYPE pandaflow_{name} {kind}"
        yield f"pandaflow_{name} {value:g}"
