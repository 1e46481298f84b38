"""Conformance kit for batch systems: subclass it, give it a back-end and texts, run pytest.

Examples
--------
>>> class TestMySystem(BackendTests):
...     backend = MySystem()
...     taken = [Said("Job 17 submitted", id="17")]
...     refused = [Said("", "no such queue", 1, words="no such queue")]
...     silent = [Said("", "cannot reach the server", 1)]
...     polls = [Said("17 R", states={("17", None): "running"})]

The texts are what the system's commands really print: the kit cannot know them. What it knows is
how a back-end behaves whatever the system: every part of a request reaches the script, paths with
blanks survive the shell, an answer that is cut or foreign never looks like "no such job", and no
text of any kind makes a parser raise anything but a ``SiteError``.
"""

# ruff: noqa: D102 - a test's name says what it shows
from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pandaflow.core.errors import SiteError, WorkflowError
from pandaflow.executors.batch.model import (
    Backend,
    BatchRequest,
    BatchStatus,
    JobRef,
    Queue,
    failure,
)
from pandaflow.executors.batch.script import ID, INDEX, batch_files, batch_script

__all__ = ["FOREIGN", "BackendTests", "Said"]

_Parser: TypeAlias = Callable[[str, str, int], Any]

#: What may come instead of an answer: none of it is a list of jobs or of queues.
FOREIGN = (
    "Welcome to the cluster!\nMaintenance on Monday.",
    "<html><body>502 Bad Gateway</body></html>",
    "\x00\x01\x02\ufffd",
    "[" * 20_000,
    '{"Jobs": [1, 2',
    "<job_info><queue_info>",
    "|||||||||||",
)

_FULL = BatchRequest(
    name="select-muons",
    account="physics",
    walltime=5400.0,
    nodes=1,
    tasks_per_node=2,
    cores=4,
    memory=3 * 2**30 + 1,
    stdout="/scratch/my runs/out-{id}-{index}.txt",
    workdir="/scratch/my runs",
    env={"GREETING": 'it\'s "$HOME"; `date`'},
    array=12,
    max_running=3,
    warn=("USR1", 120.0),
)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command printed, and what it means.

    Attributes
    ----------
    stdout, stderr : str
    code : int
    id : str
        For submissions: the job's id.
    words : str
        For refusals: a part of the system's own words that the error must pass on.
    states : mapping of JobRef to str
        For polls and histories: the states, of all jobs that are told.
    exits : mapping of JobRef to (int or None, int or None)
        For polls and histories: exit code and signal of some of them.
    queues : tuple of str
        For queues: their names.
    """

    stdout: str = ""
    stderr: str = ""
    code: int = 0
    id: str = ""
    words: str = ""
    states: Mapping[JobRef, str] = field(default_factory=dict)
    exits: Mapping[JobRef, tuple[int | None, int | None]] = field(default_factory=dict)
    queues: tuple[str, ...] = ()

    def given(self, parse: _Parser) -> Any:
        """Return what a parser makes of it."""
        return parse(self.stdout, self.stderr, self.code)


class BackendTests:
    """What every back-end must do. The subclass brings ``backend`` and recorded texts."""

    #: The back-end under test.
    backend: Backend
    #: Submissions that were taken, with ``id``.
    taken: Sequence[Said] = ()
    #: Submissions that were refused for good, with ``words``.
    refused: Sequence[Said] = ()
    #: What commands print while the system does not answer.
    silent: Sequence[Said] = ()
    #: Polls, with ``states``; an answer that knows no job has none.
    polls: Sequence[Said] = ()
    #: Histories, with ``states`` and ``exits``.
    histories: Sequence[Said] = ()
    #: Cancellations after which the jobs are gone, whether by it or before.
    cancelled: Sequence[Said] = ()
    #: Cancellations that were refused.
    not_cancelled: Sequence[Said] = ()
    #: Lists of queues, with ``queues``.
    queue_lists: Sequence[Said] = ()
    #: The command that asks for the queue can print nothing at all when there is no job.
    empty_is_none = True
    #: It has job arrays. Without, the requests of the kit have none, but for one that is refused.
    arrays = True

    # --- the texts ------------------------------------------------------------------------------

    def test_there_are_texts_to_test_with(self) -> None:
        missing = [
            name
            for name in ("taken", "refused", "silent", "polls", "cancelled")
            if not getattr(self, name)
        ]
        assert not missing, f"give examples of what the system prints: {', '.join(missing)}"

    def test_a_submission_gives_the_id(self) -> None:
        for said in self.taken:
            assert said.given(self.backend.parse_submit) == said.id

    def test_a_banner_before_the_id_is_skipped(self) -> None:
        for said in self.taken:
            banner = replace(said, stdout=f"Welcome!\n{said.stdout}")
            assert banner.given(self.backend.parse_submit) == said.id

    def test_a_refusal_passes_on_the_systems_words(self) -> None:
        for said in self.refused:
            with pytest.raises(SiteError) as caught:
                said.given(self.backend.parse_submit)
            assert said.words and said.words in str(caught.value)
            assert not caught.value.transient

    def test_silence_is_transient_for_every_command(self) -> None:
        for said in self.silent:
            for parse in self._parsers():
                with pytest.raises(SiteError) as caught:
                    said.given(parse)
                assert caught.value.transient, (parse, said)

    def test_polls_and_histories_are_read(self) -> None:
        for parse, texts in (
            (self.backend.parse_poll, self.polls),
            (self.backend.parse_history, self.histories),
        ):
            for said in texts:
                found = said.given(parse)
                assert {ref: status.state for ref, status in found.items()} == dict(said.states)
                ends = {ref: (found[ref].exit_code, found[ref].signal) for ref in said.exits}
                assert ends == dict(said.exits)
                self._consistent(found)

    def test_cancelling_what_is_gone_is_no_error(self) -> None:
        for said in self.cancelled:
            assert said.given(self.backend.parse_cancel) is None
        for said in self.not_cancelled:
            with pytest.raises(SiteError):
                said.given(self.backend.parse_cancel)

    def test_queues_are_read(self) -> None:
        for said in self.queue_lists:
            found = said.given(self.backend.parse_queues)
            assert tuple(queue.name for queue in found) == said.queues
            assert all(isinstance(queue, Queue) for queue in found)

    # --- answers that are none ------------------------------------------------------------------

    def test_nothing_at_all_is_no_job(self) -> None:
        if not self.empty_is_none:
            pytest.skip("its answers are never empty")
        assert self.backend.parse_poll("", "", 0) == {}

    @pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
    def test_a_foreign_answer_never_means_that_the_jobs_are_gone(self, text: str) -> None:
        for parse in (
            self.backend.parse_poll,
            self.backend.parse_history,
            self.backend.parse_queues,
        ):
            with pytest.raises(SiteError) as caught:
                parse(text, "", 0)
            assert caught.value.transient
        with pytest.raises(SiteError, match="queue"):
            self.backend.parse_submit(text, "", 0)

    def test_an_answer_that_is_cut_raises_nothing_but_site_errors(self) -> None:
        for said in (*self.polls, *self.histories, *self.queue_lists, *self.taken):
            step = max(1, len(said.stdout) // 40)
            for end in range(0, len(said.stdout), step):
                for parse in self._parsers():
                    self.only_site_errors(parse, said.stdout[:end], said.stderr, said.code)

    def only_site_errors(self, parse: _Parser, stdout: str, stderr: str, code: int) -> None:
        """Call a parser: what it returns must be in order, what it raises a ``SiteError``."""
        try:
            found = parse(stdout, stderr, code)
        except SiteError:
            return
        if isinstance(found, dict):
            self._consistent(found)

    def _consistent(self, found: Mapping[JobRef, BatchStatus]) -> None:
        for ref, status in found.items():
            assert status.ref == ref
            assert status.index is None or status.index >= 0
            assert status.exit_code is None or status.signal is None
            assert not (status.live and status.ended is not None), status
            why = failure(status)
            assert (why is None) == (status.live or status.state == "done")
            assert why is None or why.charged != status.infrastructure

    def _parsers(self) -> tuple[_Parser, ...]:
        end = self.backend
        asked = (end.parse_poll, end.parse_history, end.parse_queues)
        return (*asked, end.parse_submit, end.parse_cancel)

    @property
    def _full(self) -> BatchRequest:
        return _FULL if self.arrays else replace(_FULL, array=None, max_running=None)

    # --- requests -------------------------------------------------------------------------------

    def test_every_part_of_a_request_reaches_the_script(self) -> None:
        files = batch_files(self.backend, "/tmp/job.sh", self._full, "true")
        text = "\n".join(files.values())
        for part in ("select-muons", "physics", "my runs", "GREETING"):
            assert part in text, part
        # Two of anything that is not said in the request itself must differ in the script.
        for change in self._changes():
            changed = batch_files(
                self.backend, "/tmp/job.sh", replace(self._full, **change), "true"
            )
            assert changed != files, f"{change} makes no difference"

    def _changes(self) -> list[dict[str, Any]]:
        of_arrays = [{"array": None}, {"array": 11}, {"max_running": 5}]
        return [
            {"walltime": 7200.0},
            {"tasks_per_node": 1},
            {"cores": 2},
            {"memory": 2**30},
            {"gpus": 2},
            {"stderr": "/scratch/err"},
            {"warn": None},
            {"warn": ("USR2", 120.0)},
            {"requeue": True},
            {"extra": ("--anything",)},
            *(of_arrays if self.arrays else ()),
        ]

    def test_more_nodes_or_a_word_why_not(self) -> None:
        try:
            several = self.backend.directives(replace(_FULL, nodes=3, array=None))
        except WorkflowError as error:
            assert "nodes=3" in str(error)
            return
        assert several != self.backend.directives(replace(_FULL, array=None))

    def test_directives_stand_before_the_first_command(self) -> None:
        lines = batch_script(self.backend, self._full, "true").splitlines()
        assert lines[0].startswith("#!")
        count = len(self.backend.directives(self._full)) if self.backend.prefix else 0
        assert all(line.startswith(f"{self.backend.prefix} ") for line in lines[1 : 1 + count])
        assert all("\n" not in line for line in self.backend.directives(self._full))

    def test_the_script_runs_and_knows_its_variables(self, tmp_path: Path) -> None:
        folder = tmp_path / "a folder"
        folder.mkdir()
        request = replace(_FULL, workdir=str(folder), stdout=str(folder / "out"), array=None)
        body = f'printf "%s|%s|%s|%s" "${{{ID}-unset}}" "${{{INDEX}-unset}}" "$GREETING" "$HERE"'
        text = batch_script(self.backend, replace(request, warn=None), body, ["HERE=$(pwd)"])
        run = subprocess.run(
            ["bash", "-c", text], capture_output=True, text=True, timeout=30, check=True
        )
        out = run.stdout or (folder / "out").read_text()
        _, index, greeting, here = out.rsplit("|", 3)
        assert (index, greeting) == ("", _FULL.env["GREETING"])
        assert not self.backend.prefix or here == str(folder)

    def test_a_line_break_cannot_smuggle_in_a_directive(self) -> None:
        for name in ("name", "queue", "account", "stdout", "workdir"):
            with pytest.raises(WorkflowError, match=name):
                replace(_FULL, **_with(name, "a\nb"))

    # --- commands -------------------------------------------------------------------------------

    def test_commands_are_lists_of_words(self) -> None:
        end = self.backend
        for command in (
            end.submit("/tmp/my job.sh", _FULL),
            end.poll(["17", "18"], "alice"),
            end.poll(None, "alice"),
            end.history(["17"], "alice"),
            end.history(["17", "18"], "alice"),
            end.cancel([("17", None), ("18[]", 3)]),
            end.queues(),
        ):
            assert command and all(isinstance(word, str) and word for word in command)
            assert shlex.split(shlex.join(command)) == command

    def test_one_command_names_all_jobs(self) -> None:
        command = " ".join(self.backend.cancel([("17", None), ("18", None)]))
        assert "17" in command and "18" in command

    def test_a_system_without_arrays_says_so(self) -> None:
        if self.arrays:
            assert self.backend.directives(_FULL)
            return
        with pytest.raises(WorkflowError, match="array"):
            self.backend.directives(_FULL)

    def test_an_element_is_cancelled_apart_from_its_array(self) -> None:
        if not self.arrays:
            pytest.skip("it has no arrays")
        job = next((said.id for said in self.taken if "[]" in said.id), "17")
        whole = self.backend.cancel([(job, None)])
        assert whole != self.backend.cancel([(job, 0)]) != self.backend.cancel([(job, 1)])

    def test_the_script_is_named_with_its_blanks(self) -> None:
        command = self.backend.submit("/tmp/my job.sh", _FULL)
        # A system's own wrapper may hand its words to another shell.
        words = [part for word in command for part in (word, *_words(word))]
        assert any(word.startswith("/tmp/my job.sh") for word in words)


def _words(word: str) -> list[str]:
    try:
        return shlex.split(word)
    except ValueError:
        return []


def _with(name: str, value: object) -> dict[str, Any]:
    return {name: value}
