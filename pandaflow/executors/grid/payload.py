"""Runs a bundle of functions in a process of its own, for a pilot.

``python -m pandaflow.executors.grid.payload WORK CODE REPLY``: reads what the driver packed,
and the pickled payload (``-``: the work has it), and leaves the packed reply. SIGTERM stops the
running job, and the reply tells what there was by then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pandaflow.core.errors import DataError
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.worker import run
from pandaflow.executors.supervise import cancel

#: Exit codes: the arguments are wrong; work or code cannot be read; there is no room for a reply.
EXIT_USAGE, EXIT_DATA, EXIT_ROOM = 64, 65, 73


def serve(work: Path, code: Path | None, reply: Path) -> None:
    """Run the bundle that lies in ``work``; leave what came of it in ``reply``.

    Parameters
    ----------
    work, reply : Path
    code : Path or None
        The pickled payload; None: the work has it.

    Raises
    ------
    DataError, OSError
    """
    packed = work.read_bytes()
    _stop_on_sigterm(packed)
    answer = run(packed, None if code is None else code.read_bytes())
    part = reply.with_name(f"{reply.name}.part")
    part.write_bytes(answer)
    part.replace(reply)


def _stop_on_sigterm(packed: bytes) -> None:
    """Let SIGTERM cancel the bundle instead of ending this process."""
    spec = wire.work_of(packed).spec

    def stop(number: int, frame: FrameType | None) -> None:
        # Not here: the interrupted code may hold the very lock that cancelling needs.
        threading.Thread(target=cancel, args=(spec.run, spec.bundle), daemon=True).start()

    signal.signal(signal.SIGTERM, stop)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a bundle and end the process, with whatever threads its jobs have left."""
    words = sys.argv[1:] if arguments is None else arguments
    status = EXIT_USAGE
    if len(words) == 3:
        work, code, reply = words
        status = _served(Path(work), None if code == "-" else Path(code), Path(reply))
    else:
        sys.stderr.write("usage: python -m pandaflow.executors.grid.payload WORK CODE REPLY\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _served(work: Path, code: Path | None, reply: Path) -> int:
    try:
        serve(work, code, reply)
    except (DataError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return EXIT_DATA if isinstance(error, DataError) else EXIT_ROOM
    return 0


if __name__ == "__main__":
    main()
