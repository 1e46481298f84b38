"""What the host's shell answers, as states of pilots; no input or output."""

from __future__ import annotations

import re
from typing import NamedTuple

from pandaflow.core.errors import SiteError
from pandaflow.harvester.submitter import UNKNOWN, PilotState


class Answer(NamedTuple):
    """A line: what is said of which pilot, its exit code and more words."""

    kind: str
    name: str
    code: int | None
    text: str


def parse(stdout: str, mark: str, host: str) -> list[Answer]:
    """Return the marked lines of an answer.

    Raises
    ------
    SiteError
        The answer was cut off, or the script itself says that it could not do its work.
    """
    said = [line[len(mark) + 1 :] for line in stdout.splitlines() if line.startswith(f"{mark} ")]
    wrong = [line[6:].strip() for line in said if line.startswith("error ")]
    if wrong:
        raise SiteError(f"{host} says: {wrong[0]}")
    if not said or said[-1].strip() != "end":
        raise SiteError(f"{host} answered in part only", transient=True)
    return [_answer(line) for line in said[:-1]]


def _answer(line: str) -> Answer:
    kind, _, rest = line.partition(" ")
    name, _, rest = rest.partition(" ")
    code, text = "", rest
    if kind in ("gone", "killed", "stillborn", "failed"):
        code, _, text = rest.partition(" ")
    number = int(code) if re.fullmatch(r"\d{1,3}", code) else None
    return Answer(kind, name, number, " ".join(text.split()))


def state(answer: Answer, host: str) -> PilotState:
    """Return what a line says of a pilot.

    Raises
    ------
    SiteError
        It was begun on another host.
    """
    if answer.kind == "running":
        return PilotState(phase="running")
    if answer.kind == "gone":
        return _ended(answer)
    if answer.kind == "elsewhere":
        raise SiteError(
            f"{host} is another machine than {answer.text}, where pilot {answer.name} was begun: "
            "name one machine as host",
            transient=True,
        )
    if answer.kind == "unknown":
        return UNKNOWN
    return PilotState(phase="gone", reason=_REASONS[answer.kind] + _last(answer))


_REASONS = {
    "rebooted": "the host was started again",
    "killed": "its processes were killed",
    "stillborn": "it did not begin",
}


def _ended(answer: Answer) -> PilotState:
    # The shell's code for a command that a signal ended is 128 and the signal.
    code = answer.code
    if code is not None and 128 < code <= 192:
        code = 128 - code
    return PilotState(
        phase="gone", code=code, reason=_last(answer).removeprefix(": ") if code else ""
    )


def _last(answer: Answer) -> str:
    return f": {answer.text}" if answer.text else ""
