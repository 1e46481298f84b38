"""What elements say of themselves and of bundles, taken into the account."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted
from pandaflow.executors.batch import element
from pandaflow.executors.batch.account import Account
from pandaflow.executors.batch.inflight import Element
from pandaflow.executors.channel import unpack_said
from pandaflow.executors.outcome import unpack_ended

logger = logging.getLogger("pandaflow.executors")

_REASONS = {
    "lost": "its batch job was started twice",
    "dropped": "its batch job was taken back",
}


def listen(account: Account, of: Element) -> None:
    """Hear what an element has said since the last time."""
    messages, of.offset = element.read_reports(of.report, of.offset)
    for message in messages:
        number = _hear(account, of, message)
        if number is not None and not of.gone:  # cancelled at the very moment when it began
            account.end(of)
        if message["op"] == "said":
            _pass_on(account, of, message)


def catch_up(account: Account, of: Element) -> None:
    """Hear what an element said before it was adopted.

    Not the messages of its jobs: they have been passed on, or nobody listened.
    """
    messages, of.offset = element.read_reports(of.report, 0)
    for message in messages:
        _hear(account, of, message)
    if of.open and of.current is not None and not account.carries(of, of.current):
        account.end(of)


def _hear(account: Account, of: Element, message: Mapping[str, Any]) -> int | None:
    """Take a message in; return the bundle that began though nobody wants it, if one did."""
    match message["op"]:
        case "here":
            of.here = True
        case "started" | "ended" | "lost" | "dropped":
            event = _event(of, message)
            if event is not None:
                return _take(account, of, event)
    return None


def _take(
    account: Account, of: Element, event: BundleStarted | BundleEnded | BundleLost
) -> int | None:
    mine = account.carries(of, event.bundle)
    if isinstance(event, BundleStarted):
        of.current = event.bundle
        if mine:
            account.started(of, event)
        return None if mine else event.bundle
    of.current = None
    if mine and isinstance(event, BundleEnded):
        account.ended(event)
    elif mine and isinstance(event, BundleLost):
        account.lost(event)
    return None


def _event(
    of: Element, message: Mapping[str, Any]
) -> BundleStarted | BundleEnded | BundleLost | None:
    """Read a message about a bundle; None if it is damaged."""
    try:
        number = int(message["bundle"])
        match message["op"]:
            case "started":
                return BundleStarted(float(message["at"]), number, str(message["worker"]))
            case "ended":
                return unpack_ended(dict(message))
        reason = str(message.get("reason", _REASONS[message["op"]]))
        return BundleLost(time.time(), number, reason, None, charged=False)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        logger.warning("%s: a damaged message: %s: %s", of.report, type(error).__name__, error)
        return None


def _pass_on(account: Account, of: Element, message: Mapping[str, Any]) -> None:
    try:
        said = list(unpack_said(dict(message)))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        logger.warning("%s: a damaged message: %s: %s", of.report, type(error).__name__, error)
        return
    for each in said:
        account.report(each)
