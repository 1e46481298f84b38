"""What the failure of a task means: who is to blame, and what to do about its bundle."""

from __future__ import annotations

import re
from concurrent.futures import CancelledError
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal[
    "unheard", "endpoint", "worker", "node", "large", "unfit", "ours", "broken"
]

#: A user endpoint was killed, and its successor waits until its pid file is old.
_ENDPOINT = re.compile(r"Another instance of this endpoint is running")
_WORKER = re.compile(r"\bWorkerLost\b|BrokenProcessPool|terminated abruptly")
_NODE = re.compile(r"\bManagerLost\b|\bCommandClientTimeout|\bInterchange")
_LARGE = re.compile(r"MaxResultSizeExceeded|RESULT_TOO_LARGE")
_UNFIT = re.compile(r"InvalidResourceSpecification|resource.?spec", re.I)
_OURS = re.compile(r"pandaflow_bundle|pandaflow/executors/globus")


def judge(error: BaseException) -> tuple[Verdict, str]:
    """Say what the failure of a task means, and in one line what happened.

    Parameters
    ----------
    error : BaseException
        Of the SDK's future.

    Returns
    -------
    verdict : str
        ``unheard``: the result was not heard of, the task may have ended or not;
        ``endpoint``: the user endpoint is gone, and with it all that it had;
        ``worker``: the process that ran the task died, maybe because of it;
        ``node``: more than its process died;
        ``large``: the result is above the limit;
        ``unfit``: the engine does not know what was asked for;
        ``ours``: what PandaFlow does on a worker failed, say for want of disk;
        ``broken``: the endpoint cannot run anything as it is configured.
    """
    text = " ".join(str(error).split())
    if isinstance(error, CancelledError) or type(error).__name__ != "TaskExecutionFailed":
        return "unheard", f"{type(error).__name__}: {text}"[:600]
    last = _last_line(str(error))
    table: tuple[tuple[re.Pattern[str], Verdict, str], ...] = (
        (_ENDPOINT, "endpoint", "its user endpoint was lost"),
        (_WORKER, "worker", "the worker process died"),
        (_NODE, "node", "its node or its engine was lost"),
        (_LARGE, "large", "its result is above the limit of the service"),
        (_UNFIT, "unfit", "the endpoint's engine does not take its resources"),
        (_OURS, "ours", "it could not be run"),
    )
    for pattern, verdict, what in table:
        if pattern.search(str(error)):
            return verdict, f"{what}: {last}"
    return "broken", last


def _last_line(text: str) -> str:
    """Return the line that names the error; without one, the end of what was said."""
    lines = [line.strip(" -\t") for line in text.splitlines()]
    told = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Lost|Exceeded)\b", line)]
    return told[-1][:600] if told else " ".join(text.split())[-600:] or "nothing was said"
