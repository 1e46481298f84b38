"""Container runtimes behind one table: each turns a command line into another.

A runtime of yours is one more entry of :data:`RUNTIMES`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pandaflow_pilot.codes import PilotError

#: Image that stands for the node's own system, read-only.
HOST = "host"


@dataclass(frozen=True)
class Box:
    """What a payload in a container sees.

    Attributes
    ----------
    image : str
    workdir : str
        Can be written, and is where the payload begins; has the same path inside.
    name : str
        Of the container.
    readable : tuple of str
        Further folders of the node that it may read.
    hidden : tuple of str
        Files and folders of the node that it must not see.
    gpus : bool
    env : tuple of str
        Names of variables that it gets.
    """

    image: str
    workdir: str
    name: str
    readable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    gpus: bool = False
    env: tuple[str, ...] = ()


@dataclass(frozen=True)
class Runtime:
    """A container runtime.

    Attributes
    ----------
    program : str
    wrap : callable
        (program, box, argv) -> argv.
    probe : tuple of str
        Arguments with which it must succeed if it works here.
    stop : callable or None
        (program, name) -> argv that ends a container whose processes are not the pilot's.
    takes : callable
        Tells whether an image is of its kind.
    """

    program: str
    wrap: Callable[[str, Box, Sequence[str]], list[str]]
    probe: tuple[str, ...]
    takes: Callable[[str], bool]
    stop: Callable[[str, str], list[str]] | None = None


def bubblewrap(program: str, box: Box, argv: Sequence[str]) -> list[str]:
    """Return the command line: a read-only root of its own, and own process numbers."""
    line = [program, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    if box.image == HOST:
        line += ["--ro-bind", "/", "/"]
    else:
        line += _root(box.image)
    line += ["--dev", "/dev", "--proc", "/proc"]
    if box.gpus:
        line += ["--dev-bind", "/dev", "/dev"]
    if box.image == HOST:
        for path in box.hidden:
            folder = os.path.isdir(path)
            line += ["--tmpfs", path] if folder else ["--ro-bind", "/dev/null", path]
    for path in box.readable:
        line += ["--ro-bind", path, path]
    return [*line, "--bind", box.workdir, box.workdir, "--chdir", box.workdir, "--", *argv]


def _root(image: str) -> list[str]:
    """Bind what an image has at its top: so folders of the node can be put beside it."""
    line: list[str] = []
    for name in sorted(os.listdir(image)):
        path, inner = os.path.join(image, name), f"/{name}"
        if os.path.islink(path):
            line += ["--symlink", os.readlink(path), inner]
        elif name not in ("dev", "proc", "tmp"):
            line += ["--ro-bind", path, inner]
    return [*line, "--tmpfs", "/tmp"]


def apptainer(program: str, box: Box, argv: Sequence[str]) -> list[str]:
    """Return the command line of Apptainer (or Singularity)."""
    binds = [f"{path}:{path}:ro" for path in box.readable] + [f"{box.workdir}:{box.workdir}"]
    line = [program, "exec", "--contain", "--no-home", "--bind", ",".join(binds)]
    if box.gpus:
        line.append("--nv")
    return [*line, "--pwd", box.workdir, box.image, *argv]


def podman(program: str, box: Box, argv: Sequence[str]) -> list[str]:
    """Return the command line of Podman; values of variables are not in it."""
    line = [program, "run", "--rm", "--name", box.name, "--network", "host", "--entrypoint", ""]
    for path in box.readable:
        line += ["--volume", f"{path}:{path}:ro"]
    line += ["--volume", f"{box.workdir}:{box.workdir}:rw", "--workdir", box.workdir]
    for name in box.env:
        line += ["--env", name]
    if box.gpus:
        line += ["--device", "nvidia.com/gpu=all"]
    return [*line, box.image, *argv]


def _no_root(image: str) -> bool:
    return image != HOST


def _root_folder(image: str) -> bool:
    return image == HOST or os.path.isdir(image)


RUNTIMES: Mapping[str, Runtime] = {
    "apptainer": Runtime("apptainer", apptainer, ("version",), _no_root),
    "podman": Runtime(
        "podman",
        podman,
        ("info",),
        lambda image: image != HOST and not os.path.isdir(image),
        lambda program, name: [program, "rm", "--force", "--time", "0", name],
    ),
    "bubblewrap": Runtime(
        "bwrap",
        bubblewrap,
        ("--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "true"),
        _root_folder,
    ),
}


def working(wanted: str = "") -> dict[str, str]:
    """Return the runtimes that work on this node: name -> program.

    Parameters
    ----------
    wanted : str
        Only this one.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if wanted and wanted not in RUNTIMES:
        raise ValueError(f"no container runtime {wanted!r}; known are {', '.join(RUNTIMES)}")
    found = {}
    for name, runtime in RUNTIMES.items():
        program = shutil.which(runtime.program) if wanted in ("", name) else None
        if program and _succeeds([program, *runtime.probe]):
            found[name] = program
    return found


def _succeeds(argv: Sequence[str]) -> bool:
    try:
        ended = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ended.returncode == 0


def chosen(image: str, programs: Mapping[str, str]) -> tuple[Runtime, str]:
    """Return the runtime for an image, and its program.

    Raises
    ------
    PilotError
        None here takes it.
    """
    for name, program in programs.items():
        if RUNTIMES[name].takes(image):
            return RUNTIMES[name], program
    here = ", ".join(programs) or "none"
    raise PilotError("container", f"no runtime here runs the image {image!r}; there is: {here}")
