"""Nothing of ours unpacks archives: a name in one could lead out of a sandbox (zip-slip)."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Whoever needs one of these checks each member's name first, and says here where.
UNPACKING = frozenset({"extract", "extractall", "unpack_archive"})
CHECKED: frozenset[str] = frozenset()


def unpacking(text: str) -> list[str]:
    """Return the calls in a program that unpack something."""
    calls = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    names = (getattr(call, "attr", getattr(call, "id", "")) for call in calls)
    return [name for name in names if name in UNPACKING]


def test_no_module_unpacks_archives() -> None:
    files = [*ROOT.glob("pandaflow/**/*.py"), *ROOT.glob("pilot/pandaflow_pilot/*.py")]
    assert len(files) > 300
    found = {str(path.relative_to(ROOT)): unpacking(path.read_text()) for path in files}
    assert {path: calls for path, calls in found.items() if calls and path not in CHECKED} == {}


def test_the_check_sees_what_it_looks_for() -> None:
    assert unpacking("import tarfile\ntarfile.open('a').extractall('b')") == ["extractall"]
    assert unpacking("from shutil import unpack_archive\nunpack_archive('a')") == ["unpack_archive"]
