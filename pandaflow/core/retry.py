"""What follows a failed attempt: another, with what, and when; or the end."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pandaflow.core.model import Failure, Resources
from pandaflow.core.policy import Retry, RetryRule

#: A job whose worker vanished so often is taken to be the cause, and fails.
MAX_LOST = 3
#: Kind of a failure that another attempt cannot mend: no site can run the job as it is.
UNFIT = "unfit"


@dataclass(frozen=True, slots=True)
class Again:
    """Try again ``after`` seconds, with these resources."""

    after: float
    resources: Resources
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further attempt."""

    reason: str


def matching(rule: RetryRule, failure: Failure) -> bool:
    """Tell whether a rule speaks of this failure: by kind, or by exception type or base."""
    names = {failure.kind, failure.type, failure.type.rpartition(".")[2], *failure.mro}
    return rule.match in names


def decide(
    failure: Failure, retry: Retry, resources: Resources, *, charged: int, lost: int
) -> Again | GiveUp:
    """Decide what follows a failed attempt.

    A job that no site can run (``unfit``) is given up at once, unless a rule speaks of that.

    Parameters
    ----------
    failure : Failure
        Of the attempt that just ended.
    retry : Retry
    resources : Resources
        What that attempt had.
    charged, lost : int
        Charged failures and uncharged losses of the job, this one included.
    """
    rule = next((rule for rule in retry.rules if matching(rule, failure)), None)
    if failure.kind == UNFIT and rule is None:
        return GiveUp(failure.message)
    if not failure.charged:
        if lost >= MAX_LOST:
            return GiveUp(f"{failure.message} ({lost} times)")
        return Again(0.0, resources, failure.message)
    if rule is not None and rule.action == "fail":
        return GiveUp(f"{failure.message} (rule {rule.match!r}: fail)")
    limit = retry.retries
    if rule is not None and rule.max_attempts is not None:
        limit = rule.max_attempts - 1
    if charged > limit:
        return GiveUp(failure.message)
    delay = back_off(retry, charged)
    return Again(delay, escalated(failure, retry, resources, rule), failure.message)


def back_off(retry: Retry, charged: int) -> float:
    """Return the seconds to wait after so many failures."""
    try:
        return min(retry.max_delay, retry.delay * float(retry.factor) ** (charged - 1))
    except OverflowError:
        return retry.max_delay


def escalated(
    failure: Failure, retry: Retry, resources: Resources, rule: RetryRule | None
) -> Resources:
    """Return what the next attempt asks (PanDA: increase_memory_xtimes, increase_cputime)."""
    action = rule.action if rule is not None else None
    more_memory = action == "more_memory" or (failure.kind == "memory" and action is None)
    more_walltime = action == "more_walltime" or (failure.kind == "walltime" and action is None)
    if more_memory and resources.memory is not None:
        factor = retry.memory_factor if retry.memory_factor > 1 or action is None else 2.0
        memory = int(resources.memory * factor)
        resources = replace(resources, memory=min(memory, retry.max_memory or memory))
    if more_walltime and resources.walltime is not None:
        factor = retry.walltime_factor if retry.walltime_factor > 1 or action is None else 2.0
        walltime = resources.walltime * factor
        resources = replace(resources, walltime=min(walltime, retry.max_walltime or walltime))
    return resources
