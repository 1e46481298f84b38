"""The pilot of PandaFlow's grid: pulls bundles of jobs on a worker node and runs them.

Needs Python 3.9 and its standard library, and nothing of PandaFlow itself.
"""

from __future__ import annotations

__version__ = "0.1.0"
