"""Functions that tests run on an endpoint.

The SDK sends a function of a module by name only, so it has to be where the endpoint can import
it: in a package that is installed there, as PandaFlow is, not in a test module.
"""

from __future__ import annotations

import os
import time
from typing import NoReturn


def add(left: int, right: int) -> int:
    """Return the sum."""
    return left + right


def fail(text: str) -> NoReturn:
    """Raise ValueError."""
    raise ValueError(text)


def make_bytes(count: int) -> bytes:
    """Return random bytes, which do not compress."""
    return os.urandom(count)


def sleep(seconds: float) -> float:
    """Wait; return how long."""
    time.sleep(seconds)
    return seconds
