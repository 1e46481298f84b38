"""The pilot's codes of errors: one table, which docs/reference/pilot.md shows.

Numbers that PanDA's pilot has for the same thing are kept; those from 1500 on are our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Code:
    """A code.

    Attributes
    ----------
    name : str
    number : int
        Above 255, so that it cannot be taken for an exit code.
    kind : str
        Kind of failure as retry rules know it.
    source : str
        ``payload``: the job is to blame; ``pilot``: node, site or pilot; ``server``: it was
        asked for.
    meaning : str
    """

    name: str
    number: int
    kind: str
    source: str
    meaning: str


_TABLE = (
    Code("no_space", 1098, "site", "pilot", "no room, or no right to write, in the work directory"),
    Code("stage_in", 1099, "input", "pilot", "no replica of an input could be read"),
    Code("stage_out", 1137, "output", "pilot", "an output could not be copied to the store"),
    Code("looping", 1150, "looping", "payload", "no output and no CPU time for too long"),
    Code("stage_in_timeout", 1151, "input", "pilot", "reading an input took too long"),
    Code("stage_out_timeout", 1152, "output", "pilot", "copying an output took too long"),
    Code("missing_output", 1165, "output", "payload", "a declared output is not there"),
    Code("signalled", 1200, "exit", "payload", "a signal ended the payload"),
    Code("walltime", 1213, "walltime", "payload", "the job ran longer than it may"),
    Code("memory", 1235, "memory", "payload", "the job's processes used more memory than asked"),
    Code("payload", 1305, "exit", "payload", "the payload's exit code is not 0"),
    Code("preempted", 1379, "site", "pilot", "the pilot was told to end"),
    Code("input_missing", 1501, "input", "pilot", "an input exists at none of its replicas"),
    Code("input_size", 1502, "input", "pilot", "an input has another size than it should"),
    Code("input_checksum", 1503, "input", "pilot", "an input has another checksum than it should"),
    Code("disk", 1504, "disk", "payload", "the work directory grew larger than asked"),
    Code("bad_output", 1505, "output", "payload", "an output is no regular file of the job's own"),
    Code("no_store", 1506, "output", "payload", "outputs are too large to report; no store given"),
    Code("cancelled", 1507, "cancelled", "server", "the server asked the payload to end"),
    Code("not_started", 1508, "exit", "payload", "the command cannot be started"),
    Code("bundle_walltime", 1509, "walltime", "payload", "the bundle ran longer than it may"),
    Code("time_up", 1510, "site", "pilot", "the pilot's own time is up"),
    Code("no_contact", 1511, "site", "pilot", "the server was away for longer than the time-out"),
    Code("code_missing", 1512, "site", "pilot", "the pickled payload cannot be had or is damaged"),
    Code("no_python", 1513, "site", "pilot", "there is no Python with PandaFlow here"),
    Code("requirements", 1514, "site", "pilot", "the packages that a task asks for do not install"),
    Code("container", 1515, "site", "pilot", "the container cannot be run here"),
    Code("protocol", 1516, "site", "pilot", "the server sent what this pilot does not understand"),
    Code("no_reply", 1517, "exit", "payload", "the payload ended well but left no reply"),
    Code("reply_size", 1518, "output", "payload", "the reply of a function is too large to report"),
    Code("internal", 1599, "site", "pilot", "a mistake of the pilot's own"),
)
#: By name.
CODES = {code.name: code for code in _TABLE}
#: Characters of a message that travel.
MESSAGE = 2_000


class PilotError(Exception):
    """Something went wrong that has a code.

    Parameters
    ----------
    name : str
        Of the code.
    message : str
    transient : bool
        Another try may go well.
    number : int, optional
        The payload's own exit code, kept instead of the pilot's number.
    """

    def __init__(
        self, name: str, message: str, *, transient: bool = False, number: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = CODES[name]
        self.transient = transient
        self.number = self.code.number if number is None else number

    def trouble(self) -> dict[str, Any]:
        """Return it as reports carry it."""
        message = " ".join(str(self).split())
        if len(message) > MESSAGE:
            message = message[: MESSAGE - 4] + " ..."
        return {
            "source": self.code.source,
            "code": self.number,
            "kind": self.code.kind,
            "message": message,
        }
