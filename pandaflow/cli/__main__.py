"""``python -m pandaflow.cli``."""

from __future__ import annotations

from pandaflow.cli import main

if __name__ == "__main__":
    main(prog_name="pandaflow")
