"""What follows a failure."""

from __future__ import annotations

from typing import Any

import pytest

from pandaflow.core.model import Failure, Resources
from pandaflow.core.policy import Retry, RetryRule
from pandaflow.core.retry import MAX_LOST, Again, GiveUp, decide, escalated, matching

GIB = 2**30
ERROR = Failure(
    kind="exception",
    message="ConnectionResetError: gone",
    type="builtins.ConnectionResetError",
    mro=("ConnectionResetError", "ConnectionError", "OSError", "Exception"),
)
MEMORY = Failure(kind="memory", message="used 3 GiB")
WALLTIME = Failure(kind="walltime", message="took too long")
LOST = Failure(kind="lost", message="its worker died", charged=False)


def after(failure: Failure, retry: Retry, charged: int = 1, **more: Any) -> Again | GiveUp:
    return decide(failure, retry, Resources(memory=GIB, walltime=60.0), charged=charged, lost=0)


def test_as_many_retries_as_allowed() -> None:
    policy = Retry(retries=2)
    decisions = [after(ERROR, policy, charged) for charged in (1, 2, 3)]
    assert [type(decision) for decision in decisions] == [Again, Again, GiveUp]
    assert decisions[2].reason == ERROR.message


@pytest.mark.parametrize("charged", [True, False])
def test_what_no_site_can_run_is_given_up_at_once(charged: bool) -> None:
    unfit = Failure(kind="unfit", message="no site has 8 cores", charged=charged)
    decision = decide(unfit, Retry(retries=9), Resources(), charged=1, lost=1)
    assert decision == GiveUp("no site has 8 cores")
    other = Retry(retries=9, rules=(RetryRule(match="OSError", action="retry"),))
    assert decide(unfit, other, Resources(), charged=1, lost=1) == decision


def test_a_rule_may_try_again_what_no_site_can_run() -> None:
    unfit = Failure(kind="unfit", message="no site has 8 GiB")
    policy = Retry(rules=(RetryRule(match="unfit", action="more_memory", max_attempts=3),))
    decisions = [after(unfit, policy, charged) for charged in (1, 2, 3)]
    assert [type(decision) for decision in decisions] == [Again, Again, GiveUp]
    assert isinstance(decisions[0], Again)
    assert decisions[0].resources.memory == 2 * GIB


def test_back_off_grows_up_to_its_limit() -> None:
    policy = Retry(retries=9, delay=10, factor=3, max_delay=100)
    waits = [
        decision.after
        for n in range(1, 5)
        if isinstance(decision := after(ERROR, policy, n), Again)
    ]
    assert waits == [10, 30, 90, 100]


def test_back_off_after_very_many_failures() -> None:
    policy = Retry(retries=5000, delay=1, factor=2)
    decision = after(ERROR, policy, 4000)
    assert isinstance(decision, Again)
    assert decision.after == policy.max_delay


def test_losses_are_not_charged_but_not_endless() -> None:
    none = Retry()
    for lost in range(1, MAX_LOST):
        decision = decide(LOST, none, Resources(), charged=0, lost=lost)
        assert isinstance(decision, Again)
        assert decision.after == 0
    assert isinstance(decide(LOST, none, Resources(), charged=0, lost=MAX_LOST), GiveUp)


@pytest.mark.parametrize(
    ("match", "applies"),
    [
        ("exception", True),
        ("ConnectionResetError", True),
        ("builtins.ConnectionResetError", True),
        ("OSError", True),
        ("ValueError", False),
        ("Reset", False),
    ],
)
def test_rules_match_kinds_and_classes(match: str, applies: bool) -> None:
    assert matching(RetryRule(match=match), ERROR) is applies


def test_first_rule_that_matches_decides() -> None:
    policy = Retry(
        retries=5,
        rules=(RetryRule(match="ConnectionError", action="fail"), RetryRule(match="OSError")),
    )
    decision = after(ERROR, policy)
    assert isinstance(decision, GiveUp)
    assert "rule 'ConnectionError'" in decision.reason
    other = Failure(kind="exception", message="x", type="builtins.OSError", mro=("OSError",))
    assert isinstance(after(other, policy), Again)


def test_rule_with_its_own_limit() -> None:
    policy = Retry(retries=0, rules=(RetryRule(match="memory", max_attempts=3),))
    kinds = [type(after(MEMORY, policy, charged)) for charged in (1, 2, 3)]
    assert kinds == [Again, Again, GiveUp]


def test_escalation_by_factor() -> None:
    policy = Retry(retries=3, memory_factor=1.5, max_memory=2 * GIB, walltime_factor=2.0)
    base = Resources(memory=GIB, walltime=60.0)
    once = escalated(MEMORY, policy, base, None)
    assert once == Resources(memory=int(1.5 * GIB), walltime=60.0)
    assert escalated(MEMORY, policy, once, None).memory == 2 * GIB
    assert escalated(WALLTIME, policy, base, None).walltime == 120.0
    assert escalated(ERROR, policy, base, None) == base


def test_escalation_by_rule() -> None:
    base = Resources(memory=GIB, walltime=60.0)
    rule = RetryRule(match="OSError", action="more_memory")
    assert escalated(ERROR, Retry(), base, rule).memory == 2 * GIB
    assert escalated(ERROR, Retry(memory_factor=4), base, rule).memory == 4 * GIB
    longer = RetryRule(match="OSError", action="more_walltime")
    assert escalated(ERROR, Retry(max_walltime=90.0), base, longer).walltime == 90.0
    plain = RetryRule(match="memory", action="retry")
    assert escalated(MEMORY, Retry(memory_factor=4), base, plain) == base


def test_nothing_to_escalate() -> None:
    assert escalated(MEMORY, Retry(memory_factor=2), Resources(), None) == Resources()
