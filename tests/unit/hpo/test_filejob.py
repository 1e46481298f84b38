from __future__ import annotations

import ctypes
import json
import os
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import pandaflow as pf
from pandaflow.core.errors import WorkflowError
from pandaflow.executors.payload import current_job
from pandaflow.hpo.filejob import Command, CommandFailed

PYTHON = sys.executable


def answering(text: str, **options: Any) -> Command:
    """A command that writes ``text`` to its output file."""
    return Command(f"cat > %OUT <<'END'\n{text}\nEND", **options)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands made by a test link the scripts of this directory."""
    monkeypatch.chdir(tmp_path)


TRAIN = """
import json, sys
point = json.load(open(sys.argv[sys.argv.index("--in") + 1]))
print("point", point)
json.dump({"status": 0, "loss": point["lr"] * 2}, open("output.json", "w"))
"""


def test_a_script_of_the_directory_evaluates_a_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    command = Command(f"{PYTHON} train.py --in %IN")
    assert command(lr=0.1, depth=3, kind="bdt", flag=True, none=None) == 0.2
    said = capsys.readouterr().out
    assert "point {'lr': 0.1, 'depth': 3, 'kind': 'bdt', 'flag': True, 'none': None}" in said
    assert sorted(os.listdir(tmp_path)) == ["train.py"]


def test_numbers_arrive_to_the_last_bit() -> None:
    command = Command(
        "cp %IN copy.json; printf '{\"loss\": ' > %OUT; "
        "tr -dc '0-9.e-' < %IN >> %OUT; printf '}' >> %OUT"
    )
    value = 0.1 + 0.2
    assert command(x=value) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"status": 0, "loss": 0.0}', 0.0),
        ('{"status": 0, "loss": 0}', 0.0),
        ('{"loss": -1e300}', -1e300),
        ('{"loss": 1.5, "message": ""}', 1.5),
        ('{"loss": [1, 0.0, -2.5]}', [1.0, 0.0, -2.5]),
        ('{"loss": 1.5, "message": "ok"}', {"value": 1.5, "attrs": {"message": "ok"}}),
        ('{"loss": 0.0, "epochs": 9}', {"value": 0.0, "attrs": {"epochs": 9}}),
    ],
)
def test_losses(text: str, value: Any) -> None:
    got = answering(text)(x=1)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"status": 1, "loss": 0.5, "message": "out of memory"}', "status 1 .out of memory"),
        ('{"status": -3}', "status -3"),
        ('{"status": "0", "loss": 1}', "status '0'"),
        ('{"status": false, "loss": 1}', "status False"),
        ('{"status": null, "loss": 1}', "status None"),
        ('{"status": 0}', "no loss"),
        ('{"loss": null}', "loss None"),
        ('{"loss": NaN}', "loss nan"),
        ('{"loss": Infinity}', "loss inf"),
        ('{"loss": 1' + "0" * 400 + "}", "loss 1000"),
        ('{"loss": true}', "loss True"),
        ('{"loss": "1.5"}', "loss '1.5'"),
        ('{"loss": []}', r"loss \[\]"),
        ('{"loss": [1, NaN]}', "loss nan"),
        ("[1.5]", "list, no JSON object"),
        ("1.5", "float, no JSON object"),
        ('{"loss": 1.', "no JSON file"),
        ("", "no JSON file"),
        ("[" * 100_000, "no JSON file"),
    ],
)
def test_what_is_no_loss_is_a_failure_that_names_the_file(text: str, words: str) -> None:
    with pytest.raises(CommandFailed, match=words) as caught:
        answering(text)(x=1)
    assert "output.json" in str(caught.value)
    assert "cat > " in str(caught.value)


def test_a_broken_encoding_is_a_failure() -> None:
    with pytest.raises(CommandFailed, match="no JSON file"):
        Command(r"printf '\377\376\000{' > output.json")(x=1)


def test_a_failing_command_is_named_with_its_code_and_last_words() -> None:
    command = Command("echo reading; echo 'no such geometry' >&2; exit 3")
    with pytest.raises(CommandFailed, match="exit code 3") as caught:
        command(x=1)
    assert "no such geometry" in str(caught.value)


def test_an_exit_code_counts_even_if_there_is_a_loss() -> None:
    with pytest.raises(CommandFailed, match="exit code 1"):
        Command("echo '{\"loss\": 1}' > %OUT; exit 1")(x=1)


def test_a_signal_is_named() -> None:
    with pytest.raises(CommandFailed, match="signal 9"):
        Command("kill -9 $$")(x=1)


def test_no_output_is_a_failure() -> None:
    with pytest.raises(CommandFailed, match=r"did not write output\.json.*printed nothing"):
        Command("true")(x=1)


def test_other_names_and_the_environment() -> None:
    command = Command(
        'test -s in.json && echo "{\\"loss\\": $SCALE}" > out.json',
        input="in.json",
        output="out.json",
        env={"SCALE": "2.5"},
    )
    assert command(x=1) == 2.5


def test_metadata_is_kept_with_the_trial() -> None:
    command = Command(
        "echo '{\"auc\": 0.9}' > meta.json; echo '{\"loss\": 1}' > %OUT", metadata="meta.json"
    )
    assert command(x=1) == {"value": 1.0, "attrs": {"metadata": {"auc": 0.9}}}
    assert answering('{"loss": 1}', metadata="meta.json")(x=1) == 1.0


def test_what_json_cannot_hold_is_said_with_the_parameter() -> None:
    for bad in (len, float("nan")):
        with pytest.raises(CommandFailed, match=r"parameter 'f' cannot be written to input\.json"):
            answering('{"loss": 1}')(f=bad)


def processes_of(marker: str) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if marker in " ".join(process.info["cmdline"] or [])
    ]


def gone(marker: str) -> bool:
    until = time.monotonic() + 10
    while processes_of(marker) and time.monotonic() < until:
        time.sleep(0.02)
    return not processes_of(marker)


def test_a_command_that_takes_too_long_is_ended_with_all_its_children(tmp_path: Path) -> None:
    marker = f"sleep {1000 + os.getpid() / 1e7}"
    with pytest.raises(CommandFailed, match=r"longer than its time-out of 0\.3 s"):
        Command(f"{marker} & {marker}; true", timeout=0.3)(x=1)
    assert gone(marker)


def test_children_that_outlive_the_command_are_ended() -> None:
    marker = f"sleep {2000 + os.getpid() / 1e7}"
    assert Command(f"{marker} & echo '{{\"loss\": 1}}' > %OUT")(x=1) == 1.0
    assert gone(marker)


class Stop(BaseException):
    """What stops a job, raised in its thread."""


def test_an_exception_from_outside_ends_the_command() -> None:
    marker = f"sleep {3000 + os.getpid() / 1e7}"
    caught: list[BaseException] = []

    def work() -> None:
        try:
            Command(f"{marker}; true")(x=1)
        except Stop as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until = time.monotonic() + 20
    while not processes_of(marker) and time.monotonic() < until:
        time.sleep(0.01)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stop)
    )
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert caught
    assert gone(marker)


@pf.task
def evaluate(number: int, command: Command) -> Any:
    workdir = current_job().workdir
    Path(workdir, "output.json").write_text('{"loss": 99}')  # as if an earlier attempt had
    return command(x=number), sorted(os.listdir(workdir))


@pf.workflow
def evaluations(command: Command) -> Any:
    return evaluate(pf.items([4, 5]), command=command)


def test_in_a_job_it_runs_in_the_jobs_directory_and_talks_to_its_log(tmp_path: Path) -> None:
    (tmp_path / "train.sh").write_text(
        "tr -dc '0-9' < input.json > n; echo seen $(cat n)\n"
        'echo "{\\"loss\\": $(cat n)}" > output.json'
    )
    (tmp_path / "input.json").write_text("not for the job")
    local = pf.executors.Local(workers=1, processes=False)
    store = f"sqlite:///{tmp_path / 'jobs.db'}"
    run = evaluations(Command("sh train.sh")).run(executor=local, store=store, progress=False)
    names = ["input.json", "n", "output.json", "train.sh"]
    assert run.result() == [(4.0, names), (5.0, names)]
    assert "seen 5" in run.logs("evaluate[1]")


def test_a_stale_output_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    command = Command("true")
    (tmp_path / "output.json").write_text('{"loss": 1}')
    with pytest.raises(CommandFailed, match="did not write"):
        command._evaluate(str(tmp_path), {"x": 1})
    assert json.loads((tmp_path / "input.json").read_text()) == {"x": 1}


def test_it_is_pickled_with_the_directory_of_its_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.sh").write_text("echo '{\"loss\": 7}' > output.json")
    data = pickle.dumps(Command("sh here.sh"))
    monkeypatch.chdir("/")
    assert pickle.loads(data)(x=1) == 7.0


def test_settings_are_there_but_cannot_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text("[1]")
    command = Command(
        "cat history.json && echo '[2]' > history.json && echo '{\"loss\": 1}' > %OUT"
    )
    assert command(x=1) == 1.0
    assert (tmp_path / "history.json").read_text() == "[1]"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python train.py --in %IN", "train"),
        ("bash ./exec_in-it.sh", "exec_in_it"),
        ("/opt/bin/fit --fast", "fit"),
        ("./.sh", "command"),
    ],
)
def test_its_name_is_that_of_the_program(command: str, name: str) -> None:
    assert Command(command).__name__ == name


@pytest.mark.parametrize(
    "make",
    [
        lambda: Command(""),
        lambda: Command(["python", "train.py"]),  # type: ignore[arg-type]
        lambda: Command("true", timeout=0),
        lambda: Command("true", timeout=float("nan")),
        lambda: Command("true", input="../input.json"),
        lambda: Command("true", output=""),
        lambda: Command("true", input="a.json", output="a.json"),
    ],
)
def test_bad_options_are_refused(make: Any) -> None:
    with pytest.raises(WorkflowError, match=r"hpo\.Command"):
        make()
