"""The command line: a thin edge over the same API that scripts use.

Command modules import only click and the standard library at the top, so that
``pandaflow --help`` is quick; what they need of PandaFlow loads when a command runs.
"""

from __future__ import annotations

from pandaflow.cli.app import main

__all__ = ["main"]
