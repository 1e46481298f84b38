"""Small pieces: options, codes, slots, leases, the archive, and the oldest Python."""

from __future__ import annotations

import argparse
import ast
import base64
import compileall
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pandaflow.grid.messages import Leased, Trouble
from pandaflow_pilot import archive, cli, leases, stageout
from pandaflow_pilot.api import Api, ApiError, Pauses, TokenSource
from pandaflow_pilot.codes import CODES, PilotError
from pandaflow_pilot.settings import Node, Server
from pandaflow_pilot.slots import Slots

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "pilot" / "pandaflow_pilot"


def leased(**fields: Any) -> dict[str, Any]:
    given = {
        "id": 1, "lease": "w", "run": "r", "heartbeat": 60.0, "inline": 10, "bundle": 2,
        "task": "t", "jobs": [0], "attempt": 1, "needs": {}, "kind": "command", **fields,
    }  # fmt: skip
    message: dict[str, Any] = Leased.model_validate(given).model_dump(mode="json")
    return message


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_python_3_9_reads_it(path):
    text = path.read_text()
    ast.parse(text, feature_version=(3, 9))
    assert compileall.compile_file(str(path), quiet=1, legacy=False)
    assert "from __future__ import annotations" in text
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Match)
        words = getattr(node, "keywords", [])
        assert not any(word.arg in {"slots", "kw_only", "strict"} for word in words)


def test_it_needs_nothing_but_the_standard_library():
    allowed = set(sys.stdlib_module_names) | {"pandaflow_pilot", "psutil", "fsspec", "rucio"}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            assert {name.partition(".")[0] for name in names} <= allowed, path


def test_the_archive_runs_alone(tmp_path):
    built = archive.build(tmp_path / "pilot.pyz")
    ended = subprocess.run(
        [sys.executable, "-I", "-S", str(built), "--help"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "--container-runtime" in ended.stdout and "examples:" in ended.stdout
    assert os.access(built, os.X_OK) and os.listdir(tmp_path) == ["pilot.pyz"]


def test_the_archive_pulls_and_runs(front, tmp_path):
    built = archive.build(tmp_path / "pilot.pyz")
    bundle = front.submit("echo from the archive")
    ended = subprocess.run(
        [
            *(sys.executable, "-S", str(built), "--server", front.url, "--queue", "site"),
            *("--workdir", str(tmp_path / "work"), "--once"),
        ],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert front.result_of(bundle).out == b"from the archive\n"


def test_the_reference_lists_every_code_and_option():
    text = (ROOT / "docs" / "reference" / "pilot.md").read_text()
    for code in CODES.values():
        assert re.search(rf"\| {code.number} \| {code.name} \| {code.kind} \|", text), code
    for option in re.findall(r"--[a-z-]+", cli.parser().format_help().partition("examples:")[0]):
        assert f"`{option}" in text, option


def test_codes_are_told_apart_and_fit_the_message():
    numbers = [code.number for code in CODES.values()]
    assert len(set(numbers)) == len(numbers) and min(numbers) > 255
    for code in CODES.values():
        trouble = Trouble.model_validate(PilotError(code.name, "w " * 9_000).trouble())
        assert trouble.code == code.number and len(trouble.message) <= 2_000


@pytest.mark.parametrize(
    ("text", "size"), [("10", 10), ("2kB", 2_000), ("1.5GiB", 1_610_612_736), ("3 mb", 3_000_000)]
)
def test_sizes(text, size):
    assert cli.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-3", "3 parsecs", "inf", "nan"])
def test_sizes_and_times_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cli.parse_size(text)
    with pytest.raises(argparse.ArgumentTypeError):
        cli.parse_time(text)


def test_times():
    assert [cli.parse_time(text) for text in ("90", "1.5m", "2h", "1d")] == [90, 90, 7200, 86400]


def test_options(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,8")
    words = "--server http://127.0.0.1:1 --queue q --gpus 2 --tags a,b --walltime 1m --memory 1GB"
    settings, level = cli.parse_settings(words.split(), "pilot")
    assert settings.node.gpus == ("4", "7") and settings.node.tags == ("a", "b")
    assert settings.patience.margin == 30.0 and level == "info"
    assert settings.node.cores >= 1 and settings.node.memory == 10**9
    with pytest.raises(SystemExit) as caught:
        cli.parse_settings(["--queue", "q"], "pilot")
    assert caught.value.code == 2


def test_slots_never_give_more_than_there_is():
    slots = Slots(Node(4, 100, ("0", "1")))
    needs = leases.parse_lease(leased(needs={"cores": 3, "memory": 60, "gpus": 1})).needs
    first = slots.take(needs)
    assert first is not None and first.gpus == ("0",)
    assert slots.take(needs) is None
    free = slots.free()
    assert (free.cores, free.memory, free.gpus) == (1, 40, 1)
    slots.give_back(first)
    assert slots.take(needs) is not None


def test_leases_come_out_as_the_server_wrote_them():
    data = bytes(range(256))
    lease = leases.parse_lease(leased(kind="function", work=data))
    assert lease.work == data
    assert leases.encoded(data).encode() == base64.urlsafe_b64encode(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "1"}, {"id": True}, {"lease": None}, {"jobs": 3}, {"needs": []}, {"kind": "magic"},
        {"work": "!!!"}, {"commands": [{"position": 0}]}, {"heartbeat": "soon"},
        {"commands": [{"position": 0, "line": "x", "outputs": ["/etc/passwd"]}]},
        {"commands": [{"position": 0, "line": "x", "inputs": [{"name": "../x"}]}]},
        {"commands": [{"position": 0, "line": "x", "outputs": ["a\x00b"]}]},
    ],
)  # fmt: skip
def test_leases_that_are_not_understood(fields):
    with pytest.raises(PilotError) as caught:
        leases.parse_lease({**leased(), **fields})
    assert caught.value.code.name == "protocol"


def test_outputs_have_places_that_cannot_be_left():
    lease = leases.parse_lease(leased(run="../..", task="a/b", data="s3://bucket/", lease="word"))
    url = stageout.destination(lease, 3, "d/ä #.root")
    assert url.startswith("s3://bucket/%2E%2E%2F%2E%2E/a%2Fb/2-1-") and url.endswith(
        "/3/d/%C3%A4 %23.root"
    )
    assert "word" not in url


def test_no_token_in_clear(tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("secret")
    with pytest.raises(ValueError, match="https"):
        Api(Server("http://example.org", token_file=str(token)))
    monkeypatch.setenv("PANDAFLOW_TOKEN", "secret")
    with pytest.raises(ValueError, match="https"):
        Api(Server("http://example.org"))
    Api(Server("http://127.0.0.1:1")).close()
    with pytest.raises(ValueError, match="no http"):
        Api(Server("ftp://example.org"))


def test_tokens_are_read_again(tmp_path):
    path = tmp_path / "token"
    path.write_text("one\n")
    source = TokenSource(str(path))
    assert source.read() == "one"
    other = tmp_path / "other"
    other.write_text("two\n")
    os.replace(other, path)
    assert source.read() == "two"
    path.unlink()
    with pytest.raises(ApiError) as caught:
        source.read()
    assert "two" not in str(caught.value)


def test_pauses_grow_and_never_fall_below_what_the_server_wants():
    pauses = Pauses(1.0, 8.0)
    found = [pauses.next() for _ in range(6)]
    assert all(
        top / 2 <= pause <= top for pause, top in zip(found, (1, 2, 4, 8, 8, 8), strict=True)
    )
    assert pauses.next(60.0) == 60.0
    pauses.reset()
    assert pauses.next() <= 1.0
