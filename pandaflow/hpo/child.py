"""The process in which an optimizer lives: ``python -m pandaflow.hpo.child DESCRIPTOR``.

Started by :mod:`pandaflow.hpo.asking`; ends when the other side closes the connection.
"""

from __future__ import annotations

import os
import pickle
import sys
from multiprocessing.connection import Connection

from pandaflow.hpo.asking import Ready, make_optimizer, serve
from pandaflow.hpo.port import Optimizer


def _build(message: bytes) -> tuple[Optimizer, Ready]:
    spec, space, brief, entries, snapshot = pickle.loads(message)
    if spec.describe()["kind"] == "optuna":
        from pandaflow.hpo.optimizers.optuna_samplers import quicken

        quicken()
    optimizer = make_optimizer(spec, space, brief)
    inexact = optimizer.restore(entries, snapshot)
    return optimizer, Ready(inexact, dict(spec.describe().get("versions", {})))


def main() -> None:
    """Serve one study."""
    connection = Connection(int(sys.argv[1]))
    serve(connection, _build)
    os._exit(0)  # threads that an optimizer left behind must not keep the process


if __name__ == "__main__":
    main()
