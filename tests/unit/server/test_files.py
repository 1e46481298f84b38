"""Files of results: opened inside their folder, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.errors import NotInRun
from pandaflow.server.files import open_inside, part_of
from pandaflow.server.problems import Refusal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "root" / "run"
    (run / "values").mkdir(parents=True)
    (run / "values" / "1.values").write_bytes(b"values")
    (run / ".uploading").write_bytes(b"0")
    (tmp_path / "secret").write_bytes(b"secret")
    return run


def read(folder: Path, name: str) -> bytes:
    file, size = open_inside(str(folder), name)
    with file:
        data = file.read()
    assert len(data) == size
    return data


def test_files_are_read_below_their_folder_only(folder: Path) -> None:
    assert read(folder, "values/1.values") == b"values"
    for name in (
        "../../secret",
        "values/../../../secret",
        "/etc/passwd",
        str(folder.parent.parent / "secret"),
        "values//1.values",
        "values/./1.values",
        "values",
        "values/",
        "",
        ".",
        "..",
        ".uploading",
        "values\\1.values",
        "values/1.values\0",
        "values/1.values\n",
        "values/none",
        "values/1.values/more",
        "x" * 300,
        "x/" * 1_000,
    ):
        with pytest.raises(NotInRun):
            open_inside(str(folder), name)


def test_links_that_payloads_made_are_not_followed(folder: Path) -> None:
    secret = folder.parent.parent / "secret"
    (folder / "out").symlink_to(secret)
    (folder / "up").symlink_to(secret.parent)
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    for name in ("out", "up/secret", "loop", "pipe"):
        with pytest.raises(NotInRun):
            open_inside(str(folder), name)


def test_the_operator_may_have_put_the_folder_behind_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(folder.parent)
    assert read(tmp_path / "elsewhere" / "run", "values/1.values") == b"values"


def test_files_behind_fsspec_are_read_too() -> None:
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.pipe("/left/run/values/1.values", b"far away")
    try:
        file, size = open_inside("memory://left/run", "values/1.values")
        assert (file.read(), size) == (b"far away", 8)
        for name in ("values", "values/2.values", "../run/values/1.values"):
            with pytest.raises(NotInRun):
                open_inside("memory://left/run", name)
    finally:
        fs.rm("/left", recursive=True)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("bytes=0-3", (0, 4)),
        ("bytes=4-", (4, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=8-99", (8, 10)),
        ("bytes=0-1,3-4", None),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=a-b", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_ranges_are_read_as_http_has_them(header, part) -> None:
    assert part_of(header, 10) == part


def test_a_range_beyond_the_end_is_refused() -> None:
    for header in ("bytes=10-", "bytes=12-13", "bytes=-0"):
        with pytest.raises(Refusal) as caught:
            part_of(header, 10)
        assert caught.value.status == 416


@given(st.text(max_size=30), st.integers(0, 100))
def test_no_range_reads_outside_the_file(header: str, size: int) -> None:
    try:
        begin, end = part_of(f"bytes={header}", size) or (0, size)
    except Refusal:
        return
    assert 0 <= begin <= end <= size
