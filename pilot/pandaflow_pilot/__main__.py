"""``python -m pandaflow_pilot``."""

from __future__ import annotations

from pandaflow_pilot.cli import main

if __name__ == "__main__":
    main()
