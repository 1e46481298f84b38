"""What the hosted service refuses: sizes and rates, as published, to be set lower by tests."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass

from pandaflow.testing.globus.http import Refused

_MB = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Limits of the service, counted the way its documentation does.

    Parameters
    ----------
    submission_bytes
        Of the body of one submission, which may hold many tasks.
    requests, window_seconds
        How many of the `limited` requests a client may make in how many seconds.
    limited
        Names of the routes that count.
    result_bytes
        Of one serialized result. The endpoint's workers keep the same limit by themselves.

    Notes
    -----
    Source: "Limits" in the documentation of Globus Compute, and ``_RESULT_SIZE_LIMIT`` of
    globus-compute-endpoint 4.19. How the hosted service words its refusals is not published.
    """

    submission_bytes: int = 5 * _MB
    requests: int = 20
    window_seconds: float = 10.0
    limited: frozenset[str] = frozenset({"submit"})
    result_bytes: int = 10 * 1024 * 1024

    def check_size(self, route: str, size: int) -> None:
        """Refuse a submission that is too large, with 413."""
        if route == "submit" and size > self.submission_bytes:
            reason = f"the payload has {size} bytes; the limit is {self.submission_bytes}"
            raise Refused(413, "PAYLOAD_TOO_LARGE", reason)


class RateGate:
    """Counts what each client asked for in a sliding window."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, deque[float]] = {}

    def check(self, limits: Limits, route: str, client: str) -> None:
        """Count a request, or refuse it with 429 and the seconds to wait."""
        if route not in limits.limited:
            return
        now = time.monotonic()
        with self._lock:
            seen = self._seen.setdefault(client, deque())
            while seen and seen[0] <= now - limits.window_seconds:
                seen.popleft()
            if len(seen) < limits.requests:
                seen.append(now)
                return
            wait = max(1, math.ceil(seen[0] + limits.window_seconds - now))
        reason = f"more than {limits.requests} requests in {limits.window_seconds:g} s"
        raise Refused(429, "TOO_MANY_REQUESTS", reason, retry_after=wait)

    def clear(self) -> None:
        """Forget what was counted."""
        with self._lock:
            self._seen.clear()
