"""What a pilot is told: read once from the command line, passed on from there."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Variable that holds the token where no file does.
TOKEN_VARIABLE = "PANDAFLOW_TOKEN"
#: Variable that names Rucio's storage elements near this node where no option does.
RSE_VARIABLE = "PANDAFLOW_RSE"


@dataclass(frozen=True)
class Server:
    """Where the server is and how to prove who asks.

    Attributes
    ----------
    url : str
    token_file : str
        Read again whenever it changes; empty: the variable ``PANDAFLOW_TOKEN``, or none.
    ca, cert, key : str
        PEM files: who is trusted, and the client's certificate.
    timeout : float
        Seconds without a byte after which a call has failed.
    """

    url: str
    token_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    timeout: float = 30.0


@dataclass(frozen=True)
class Node:
    """What the pilot has to give.

    Attributes
    ----------
    cores : int
    memory : int or None
        Bytes; None: not limited.
    gpus : tuple of str
        As ``CUDA_VISIBLE_DEVICES`` names them.
    tags : tuple of str
    """

    cores: int
    memory: int | None
    gpus: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Patience:
    """Times in seconds.

    Attributes
    ----------
    walltime : float or None
        That the pilot may live; None: for ever.
    margin : float
        Of that, kept for cleaning and the last reports.
    idle : float or None
        Ends the pilot when nothing came for so long.
    looping : float
        Ends a payload without output and CPU time; 0: never.
    grace, kill_grace : float
        Between SIGTERM and SIGKILL, where results are still wanted and where they are not.
    refused : float
        Ends a pilot that the server has turned away for so long.
    beat : float
        Longest pause between two reports, whatever a heartbeat would allow.
    last : float
        For the last reports of a pilot that must end.
    """

    walltime: float | None = None
    margin: float = 60.0
    idle: float | None = None
    looping: float = 7_200.0
    grace: float = 30.0
    kill_grace: float = 0.5
    refused: float = 300.0
    beat: float = 60.0
    last: float = 10.0


@dataclass(frozen=True)
class Settings:
    """All that a pilot is told.

    Attributes
    ----------
    server : Server
    queue, name : str
    node : Node
    patience : Patience
    workdir : str
        Below it the pilot makes a folder of its own.
    python : str
        Runs functions; empty: the pilot looks for one.
    runtime : str
        Container runtime; empty: the first that works.
    rses : tuple of str
        Rucio's storage elements that inputs are read from rather than others, nearest first.
    once : bool
        End after the first answer that brings work.
    """

    server: Server
    queue: str
    name: str
    node: Node
    patience: Patience = field(default_factory=Patience)
    workdir: str = ""
    python: str = ""
    runtime: str = ""
    rses: tuple[str, ...] = ()
    once: bool = False
