"""Draw ``docs/states.md`` from the transition tables of ``pandaflow.core``.

Run ``python docs/make_states.py`` (or ``make docs``) after a change to the tables; a test fails
when the page has drifted from them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from pandaflow.core import staging, status

PAGE = Path(__file__).with_name("states.md")

INTRO = """\
# States

This page is drawn from the tables in `pandaflow/core/status.py` and `pandaflow/core/staging.py` by
`docs/make_states.py`. Do not edit it: change the tables and run `make docs`.

The words are PanDA's. A *task* that is `done` has all its jobs, one that is `finished` reached its
goal without them all; a *job* that is `finished` has succeeded. States with a double border can be
left only because a person asked for it.
"""


def _diagram(
    states: type[StrEnum],
    first: Collection[StrEnum],
    terminal: Collection[StrEnum],
    moves: Mapping[tuple[StrEnum, StrEnum], str],
) -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    direction LR"
    yield "    classDef terminal stroke-width:4px"
    yield from (f"    [*] --> {state}" for state in states if state in first)
    yield from (f"    {start} --> {finish}" for start, finish in moves)
    yield f"    class {','.join(state for state in states if state in terminal)} terminal"
    yield "```"


def _section(
    title: str,
    meaning: Mapping[StrEnum, str],
    first: Collection[StrEnum],
    terminal: Collection[StrEnum],
    moves: Mapping[tuple[StrEnum, StrEnum], str],
) -> Iterator[str]:
    states = type(next(iter(meaning)))
    yield f"\n## {title}\n"
    yield "| state | meaning |"
    yield "|---|---|"
    yield from (f"| `{state}` | {text} |" for state, text in meaning.items())
    yield ""
    yield from _diagram(states, first, terminal, moves)
    yield "\n| from | to | because |"
    yield "|---|---|---|"
    yield from (f"| `{start}` | `{finish}` | {why} |" for (start, finish), why in moves.items())


def render() -> str:
    """Return the page as Markdown."""
    job, task, run = status.JobStatus, status.TaskStatus, status.RunStatus
    lines = [
        *_section(
            "Jobs",
            status.JOB_MEANING,
            {job.PENDING, job.READY},
            status.JOB_TERMINAL,
            status.JOB_TRANSITIONS,
        ),
        *_section(
            "Tasks",
            status.TASK_MEANING,
            {task.DEFINED},
            status.TASK_TERMINAL,
            status.TASK_TRANSITIONS,
        ),
        *_section(
            "Runs of a workflow",
            status.RUN_MEANING,
            {run.DEFINED},
            status.RUN_TERMINAL,
            status.RUN_TRANSITIONS,
        ),
        *_section(
            "Files of the data carousel",
            staging.FILE_MEANING,
            {staging.FileStage.WAITING},
            {staging.FileStage.DONE, staging.FileStage.LOST},
            staging.FILE_TRANSITIONS,
        ),
        *_section(
            "Rules of the data carousel",
            staging.RULE_MEANING,
            {staging.RuleState.ASKED},
            {staging.RuleState.GONE},
            staging.RULE_TRANSITIONS,
        ),
    ]
    return INTRO + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
