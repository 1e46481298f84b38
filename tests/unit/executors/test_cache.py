from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.model import File
from pandaflow.executors import cache
from pandaflow.executors.cache import Hit, job_key, lookup, remember

DISTINCT: list[Any] = [
    None,
    True,
    1,
    1.0,
    "1",
    b"1",
    [1],
    (1,),
    [[1], 2],
    [1, [2]],
    ["ab", "c"],
    ["a", "bc"],
    {"a": 1},
    {"a": "1"},
    {1: "a"},
    {1, 2},
    {1, 3},
    File("/a", 1, mtime=1.0),
    File("/b", 1, mtime=1.0),
    File("/a", 2, mtime=1.0),
    File("/a", 1, mtime=2.0),
    1 + 2j,
    range(3),
]


def test_different_inputs_have_different_keys() -> None:
    keys = [job_key("t", [value], "mtime") for value in DISTINCT]
    assert None not in keys and len(set(keys)) == len(keys)
    assert job_key("t", [1], "mtime") != job_key("u", [1], "mtime")


def test_equal_inputs_have_equal_keys_in_every_process() -> None:
    code = (
        "from pandaflow.executors.cache import job_key\n"
        "print(job_key('t', [{'b': {'x', 'y', 'z'}, 'a': (1.5, 'ü', None)}], 'mtime'))"
    )
    here = job_key("t", [{"a": (1.5, "ü", None), "b": {"z", "y", "x"}}], "mtime")
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout.strip() == here, done.stderr


def test_arrays_count_by_content() -> None:
    numpy = pytest.importorskip("numpy")
    a = numpy.arange(6.0)
    key = job_key("t", [a], "mtime")
    assert key == job_key("t", [a.copy()], "mtime")
    others = [a.reshape(2, 3), a.astype("f4"), a + 1, a.astype(object), list(a)]
    keys = {job_key("t", [other], "mtime") for other in others}
    assert len(keys) == len(others) and key not in keys
    assert job_key("t", [a[::2]], "mtime") == job_key("t", [a[::2].copy()], "mtime")


def test_files_count_by_time_or_by_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    file = File(str(path))
    by_time, by_content = job_key("t", [file], "mtime"), job_key("t", [file], "checksum")
    os.utime(path, (1, 1))
    assert job_key("t", [file], "mtime") != by_time
    assert job_key("t", [file], "checksum") == by_content
    path.write_text("two")
    assert job_key("t", [file], "checksum") != by_content
    assert job_key("t", [File("/elsewhere", checksum=cache.checksum(str(path)))], "checksum") == (
        job_key("t", [file], "checksum")
    )


def test_what_has_no_digest_has_no_key(tmp_path: Path) -> None:
    class Closed:
        def __reduce__(self) -> Any:
            raise RuntimeError("no")

    assert job_key("t", [File(str(tmp_path / "absent"))], "mtime") is None
    assert job_key("t", [Closed()], "mtime") is None
    assert job_key("t", [(i for i in ())], "mtime") is None


def test_checksums_are_those_of_rucio(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    path = tmp_path / "f"
    path.write_bytes(data)
    assert cache.checksum(str(path)) == f"adler32:{zlib.adler32(data):08x}"
    assert cache.checksum(str(path), "md5") == f"md5:{md5(data).hexdigest()}"


@pytest.fixture(name="known")
def known_entry(bench: Any) -> tuple[str, str, Path]:
    """A root with one entry in its cache, and the path of the entry."""
    bench.run(lambda x: x + 1, bench.spec([1, 2], cache="mtime"))
    root = os.path.dirname(bench.results)
    key = job_key("token", [2], "mtime")
    assert key is not None and lookup(root, key) == Hit(3)
    return root, key, Path(root, "cache", key[:2], f"{key}.json")


def test_the_entry_is_a_small_file_with_a_relative_place(known: Any) -> None:
    root, _, path = known
    entry = json.loads(path.read_text())
    assert os.path.exists(os.path.join(root, entry["location"])) and entry["position"] == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"location": 3, "position": "x"}'])
def test_corrupt_entries_are_misses(known: Any, text: str) -> None:
    root, key, path = known
    path.write_text(text)
    assert lookup(root, key) is None


@pytest.mark.parametrize("change", ["position", "checksum", "location"])
def test_stale_entries_are_misses(known: Any, change: str) -> None:
    root, key, path = known
    entry = json.loads(path.read_text())
    entry[change] = {"position": 7, "checksum": "adler32:00000000", "location": "run9/x"}[change]
    path.write_text(json.dumps(entry))
    assert lookup(root, key) is None


def test_a_deleted_run_is_a_miss(known: Any, bench: Any) -> None:
    import shutil

    root, key, _ = known
    shutil.rmtree(bench.results)
    assert lookup(root, key) is None and lookup(root, "0" * 40) is None


def test_files_that_are_gone_are_misses(bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("x")
    bench.run(lambda x: [File(str(path), 1)], bench.spec([1], cache="mtime"))
    root, key = os.path.dirname(bench.results), job_key("token", [1], "mtime")
    assert key is not None and lookup(root, key) is not None
    path.write_text("changed size")
    assert lookup(root, key) is None
    path.unlink()
    assert lookup(root, key) is None


def test_entries_can_be_made_and_read_in_object_stores() -> None:
    pytest.importorskip("fsspec")
    root = "memory://cached"
    remember(root, "ab" * 20, location="run/x", position=0, checksum="adler32:0")
    assert lookup(root, "ab" * 20) is None  # leads nowhere, but was found without an error
