"""Scripts for a host's shell, and what is read from its answers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pandaflow.core.errors import SiteError
from pandaflow.harvester.ssh import SshSettings, script
from pandaflow.harvester.ssh.reading import parse, state
from pandaflow.harvester.submitter import UNKNOWN, Order, PilotState

MARK = "@m"


def read(*lines: str) -> list[PilotState]:
    text = "".join(f"{MARK} {line} \n" for line in (*lines, "end"))
    return [state(answer, "h") for answer in parse(f"Welcome!\n{text}", MARK, "h")]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("running p", PilotState(phase="running")),
        ("gone p 0 all is well", PilotState(phase="gone", code=0)),
        ("gone p 143 asked to end", PilotState(phase="gone", code=-15, reason="asked to end")),
        ("gone p 127 not found", PilotState(phase="gone", code=127, reason="not found")),
        ("killed p - bye", PilotState(phase="gone", reason="its processes were killed: bye")),
        ("rebooted p", PilotState(phase="gone", reason="the host was started again")),
        ("unknown p", UNKNOWN),
    ],
)  # fmt: skip
def test_states(line: str, found: PilotState) -> None:
    assert read(line) == [found]


def test_an_answer_that_was_cut_off_is_none() -> None:
    for text in ("", "Welcome!\n", f"{MARK} running p \n", f"{MARK} running p \n{MARK} en"):
        with pytest.raises(SiteError) as caught:
            parse(text, MARK, "h")
        assert caught.value.transient


def test_what_a_script_cannot_do_is_said() -> None:
    with pytest.raises(SiteError, match="h says: no setsid"):
        parse(f"{MARK} error no setsid \n", MARK, "h")


def test_another_machine_behind_the_name_is_no_answer() -> None:
    with pytest.raises(SiteError, match="another machine than node7"):
        read("elsewhere p node7")


def test_lines_of_others_are_not_read() -> None:
    assert read("running p") == [PilotState(phase="running")]
    assert parse(f"@other gone p 1\n{MARK} end\n", MARK, "h") == []


_ODD = st.text(
    st.characters(blacklist_categories=("Cs", "Cc")),
    min_size=1,
    max_size=20,
)


@given(_ODD, _ODD, _ODD)
def test_no_word_is_taken_for_shell(queue: str, value: str, folder: str) -> None:
    order = Order(
        server="https://x",
        queue=queue,
        label="pf",
        program=("printf", "[%s]"),
        env={"A": value},
        workdir=f"/{folder}",
    )
    settings = SshSettings(host="h", folder=f"/nowhere/{folder}".rstrip("/"))
    text = script.begin(settings, order, ["n"], {}, MARK)
    line = next(one for one in text.split("\n") if one.startswith("begin n "))
    shown = subprocess.run(
        ["/bin/sh", "-c", f'base=/b\nbegin() {{ shift 2; "$@"; }}\n{line}'],
        capture_output=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    ).stdout.decode("utf-8")
    expected = order.command("n")[2:]
    assert shown == "".join(f"[{word}]" for word in expected)


def test_scripts_are_the_shell_s() -> None:
    """The shell itself reads all of them; nothing is run."""
    settings = SshSettings(host="h", prologue=("module load python",))
    order = Order(server="https://x", queue="q", label="pf", token_file="t")
    texts = [
        script.begin(settings, order, ["a", "b"], {"token": "it's\n$(x)\n`y`"}, MARK),
        script.look(settings, "pf", ["a"], {}, MARK),
        script.stop(settings, "pf", ["a"], MARK),
        script.find(settings, "pf", MARK),
    ]
    for text in texts:
        subprocess.run(["/bin/sh", "-n"], input=text.encode(), check=True)


def test_ssh_asks_nothing_and_believes_no_new_host() -> None:
    words = SshSettings(host="node", user="panda", identity=Path("/k e y")).words()
    for option in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ClearAllForwardings=yes"):
        assert option in words
    assert 'IdentityFile="/k e y"' in words
    assert words[-3:] == ["--", "node", "exec /bin/sh -s"]


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "-oProxyCommand=evil"},
        {"host": "a b"},
        {"user": "-l"},
        {"port": 0},
        {"folder": "a\nb"},
        {"prologue": ["a\nb"]},
        {"password": "x"},
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SshSettings(**{"host": "h", **fields})
