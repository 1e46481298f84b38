"""Documentation that cannot drift: generated pages, links, names, settings."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import click
import pytest

import pandaflow as pf
from pandaflow import hpo
from pandaflow.cli.app import app
from pandaflow.config import PREFIX, Settings
from pandaflow.hpo.searching import SETTINGS
from pandaflow.options import OPTION_NAMES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
HPO = (DOCS / "reference" / "hpo.md").read_text(encoding="utf-8")
API = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.M | re.S)


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def script(name: str) -> ModuleType:
    """Import a script of the documentation."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fences(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [textwrap.dedent(m[3]) for m in _FENCE.finditer(text) if m[2] == language]


def test_the_command_line_page_is_up_to_date() -> None:
    page = DOCS / "reference" / "cli.md"
    # Of its own: click keeps on a command how its help was asked for by an earlier test.
    code = "import runpy, sys; sys.stdout.write(runpy.run_path('make_cli.py')['render']())"
    command = [sys.executable, "-c", code]
    made = subprocess.run(command, cwd=DOCS, capture_output=True, text=True, check=True, timeout=60)
    assert page.read_text(encoding="utf-8") == made.stdout, "run: python docs/make_cli.py"


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them of headings."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} is not there"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_python_blocks_are_python(page: Path) -> None:
    for code in fences(page, "python"):
        ast.parse(code)


def test_index_lists_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", index)}
    missing = [by_name(p) for p in DOCS.rglob("*.md") if p not in listed and p.name != "index.md"]
    assert not missing


def test_every_public_name_is_described() -> None:
    names = [name for name in pf.__all__ if name != "executors"]
    assert not [name for name in names if not re.search(rf"\bpf\.{name}\b", API)]


@pytest.mark.parametrize("handle", ["Run", "Workflow"])
def test_every_public_member_is_described(handle: str) -> None:
    section = API.partition(f"### `pf.{handle}`")[2].partition("\n### ")[0]
    members = [name for name in vars(getattr(pf, handle)) if not name.startswith("_")]
    assert not [name for name in members if not re.search(rf"`{name}\b", section)]


def test_every_public_name_of_hpo_is_described() -> None:
    assert hpo.__all__
    assert not [name for name in hpo.__all__ if not re.search(rf"`hpo\.{name}\b", HPO)]


def test_every_name_of_hpo_that_is_described_exists() -> None:
    named = re.findall(r"\bhpo\.([a-z_A-Z]+)\b(?!/)", re.sub(r"\]\([^)]*\)", "", HPO))
    assert not sorted(set(named) - set(hpo.__all__))


def test_every_public_member_of_a_study_is_described() -> None:
    section = HPO.partition("### Study\n")[2].partition("\nSettings of ")[0]
    members = [name for name in dir(hpo.Study("s")) if not name.startswith("_")]
    assert not [name for name in members if not re.search(rf"`{name}\b", section)]


@pytest.mark.parametrize("name", ["Trial", "TrialRecord", "Command", "Result"])
def test_every_field_of_what_a_study_hands_out_is_described(name: str) -> None:
    (row,) = (line for line in HPO.splitlines() if re.match(rf"\| `hpo\.{name}\b", line))
    kind = getattr(hpo, name)
    fields = getattr(kind, "__dataclass_fields__", None) or vars(kind(0, {}))
    methods = [] if name in ("Command", "Result") else vars(kind)
    public = [field for field in (*fields, *methods) if not field.startswith("_")]
    public = [field for field in public if field != "reports" or name == "TrialRecord"]
    assert not [field for field in public if not re.search(rf"\b{field}\b", row)]


def test_every_setting_of_a_study_is_described() -> None:
    section = HPO.partition("\nSettings of ")[2]
    assert not [name for name in sorted(SETTINGS) if f"`{name}`" not in section]
    given = inspect.signature(hpo.Study.optimize).parameters
    own = [n for n in given if n not in ("self", "objective", "space", "settings")]
    assert not [name for name in own if f"`{name}`" not in section]


def test_every_option_and_setting_is_described() -> None:
    assert not [option for option in OPTION_NAMES if f"`{option}`" not in API]
    settings = [f"`{PREFIX}{name.upper()}`" for name in Settings.__dataclass_fields__]
    assert not [name for name in settings if name not in API]


def command_lines() -> list[tuple[str, str]]:
    """Lines of the documentation that call the command line."""
    return [
        (by_name(page), line.strip())
        for page in PAGES
        for block in (*fences(page, ""), *fences(page, "sh"))
        for line in block.splitlines()
        if line.strip().startswith("pandaflow ")
    ]


def test_commands_that_are_shown_exist() -> None:
    shown = command_lines()
    assert shown
    for page, line in shown:
        words = [w for w in re.sub(r"--store \S+ ", "", line).split()[1:] if w != "[OPTIONS]"]
        if words[0] == "COMMAND":
            continue
        command = app.get_command(click.Context(app), words[0])
        assert command is not None, f"{page}: {line}"
        if isinstance(command, click.Group) or words[0] in ("run", "graph", "pilot"):
            continue  # takes the workflow's own options too
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        used = re.findall(r"(?<=\s)--[a-z-]+", line.partition(" | ")[0].partition(" && ")[0])
        assert set(used) <= known, f"{page}: {line}"


def test_goals_of_make_that_are_shown_exist() -> None:
    goals = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        text = "\n".join(fences(page, "")) + "".join(
            re.findall(r"`make [a-z]+`", page.read_text(encoding="utf-8"))
        )
        assert set(re.findall(r"\bmake ([a-z]+)\b", text)) <= goals, by_name(page)


@pytest.mark.parametrize("name", ["graph.svg", "timeline.svg"])
def test_pictures_are_drawn(name: str) -> None:
    root = ElementTree.parse(DOCS / "pictures" / name).getroot()
    assert root.tag.endswith("svg")
    text = " ".join(root.itertext())
    assert "simulate" in text and "12" in text


def test_pictures_can_be_drawn_again(tmp_path: Path) -> None:
    written = script("make_pictures").draw(tmp_path / "pictures", samples=4, events=100)
    assert sorted(path.name for path in written) == ["graph.svg", "timeline.svg"]
    for path in written:
        assert "simulate" in path.read_text(encoding="utf-8")
