from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pandaflow.core.bundle import BundleSpec, BundleValues, Missing
from pandaflow.core.chunking import NoItems
from pandaflow.core.errors import DataError
from pandaflow.data.results import ResultStore, encode, json_native


def spec_of(store: ResultStore, jobs: Any, bundle: int = 3) -> BundleSpec:
    return BundleSpec(
        run="run1",
        bundle=bundle,
        task=0,
        name="fill",
        token="",
        kind="function",
        jobs=jobs,
        attempt=2,
        lists=False,
        inputs=(),
        chunks=NoItems(0),
        results=store.url,
    )


def save(store: ResultStore, values: list[Any], jobs: Any = None, bundle: int = 3) -> str:
    jobs = range(len(values)) if jobs is None else jobs
    return store.save(spec_of(store, jobs, bundle), encode(values), {"op": "ended", "x": b"\0\1"})


@pytest.fixture(params=["local", "file-url", "memory"])
def store(request: Any, tmp_path: Path) -> ResultStore:
    if request.param == "memory":
        fsspec = pytest.importorskip("fsspec")
        fsspec.filesystem("memory").store.clear()
        return ResultStore("memory://results/run1")
    prefix = "file://" if request.param == "file-url" else ""
    return ResultStore(f"{prefix}{tmp_path}/run1/")


@pytest.fixture
def local(tmp_path: Path) -> ResultStore:
    return ResultStore(str(tmp_path / "run1"))


def path_of(store: ResultStore, name: str) -> Path:
    assert store.local is not None
    return Path(store.local, name)


# --- blobs ------------------------------------------------------------------------------


def test_blobs_come_back(store: ResultStore) -> None:
    store.put("payload-1", b"one")
    store.put("payload-1", b"two")
    assert store.get("payload-1") == b"two"
    with pytest.raises(DataError, match="absent"):
        store.get("absent")


def test_a_store_travels_by_its_url(store: ResultStore) -> None:
    store.put("a", b"x")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"x"


def test_blobs_appear_whole(local: ResultStore) -> None:
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(local.get("blob"))

    local.put("blob", b"a" * 100_000)
    reader = threading.Thread(target=read)
    reader.start()
    for letter in b"bcdefgh" * 20:
        local.put("blob", bytes([letter]) * 100_000)
    stop.set()
    reader.join()
    assert all(len(data) == 100_000 and len(set(data)) == 1 for data in seen)
    assert os.listdir(local.local or "") == ["blob"]


# --- values -----------------------------------------------------------------------------

natives = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
others = st.tuples(natives) | st.binary() | st.dictionaries(st.integers(), natives) | natives
gaps = st.builds(Missing, st.text(), st.booleans())


def same(left: Any, right: Any) -> bool:
    """Equal, types included, all the way down."""
    return bool(left == right) and repr(left) == repr(right)


@settings(max_examples=150, deadline=None)
@given(st.lists(others | gaps, min_size=1, max_size=6))
def test_values_come_back_as_they_were(tmp_path_factory: Any, values: list[Any]) -> None:
    local = ResultStore(str(tmp_path_factory.mktemp("r")))
    again = local.load(save(local, values))
    assert again.jobs == range(len(values)) and same(again.values, values)


@given(natives)
def test_native_values_are_kept_as_json(value: Any) -> None:
    assert json_native(value)
    encoded = encode([value, 1])
    if encoded.encoding == "json":  # lone surrogates and the like go the other way
        assert same(json.loads(encoded.body), [value, 1])
    else:
        with pytest.raises(ValueError):
            json.dumps(value, ensure_ascii=False).encode()


class Text(str):
    pass


@pytest.mark.parametrize("value", [(1,), {1: 2}, Text("x"), b"x", {1}, [(1,)], {"a": (1,)}])
def test_what_json_would_change_is_pickled(value: Any) -> None:
    assert not json_native(value) and encode([value]).encoding == "pickle"


def test_not_a_number_and_infinity_survive(local: ResultStore) -> None:
    values = local.load(save(local, [float("nan"), float("inf"), -0.0])).values
    assert repr(values) == "[nan, inf, -0.0]"


@pytest.mark.parametrize("jobs", [range(5, 8), (1, 4, 9)])
def test_the_file_tells_what_it_holds(store: ResultStore, jobs: Any) -> None:
    location = save(store, [1, 2.5, Missing("failed", absent=True)], jobs)
    assert store.find(3) == location and store.find(4) is None
    header = store.header(location)
    assert header["report"] == {"op": "ended", "x": b"\0\1"}
    assert (header["task"], header["bundle"], header["attempt"]) == ("fill", 3, 2)
    loaded = store.load(location)
    assert loaded == BundleValues(jobs, [1, 2.5, Missing("failed", absent=True)])
    assert type(loaded.jobs) is type(jobs)


def test_native_values_can_be_read_with_text_tools(local: ResultStore) -> None:
    location = save(local, [1, {"µ": [2.5, None]}])
    done = subprocess.run(
        ["tail", "-n", "+2", path_of(local, location)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [1, {"µ": [2.5, None]}] and "µ" in done.stdout


def test_values_that_nothing_serializes_are_named() -> None:
    encoded = encode([{1}, (i for i in ()), {2}, threading.Lock()])
    assert set(encoded.refused) == set(encoded.missing) == {1, 3}
    assert "generator" in encoded.refused[1] and "lock" in encoded.refused[3]
    assert pickle.loads(encoded.body) == [{1}, None, {2}, None]


def test_a_value_whose_pickling_raises_anything_is_named() -> None:
    class Bad:
        def __reduce__(self) -> Any:
            raise SystemExit("no")

    assert set(encode([Bad(), 1]).refused) == {0}


def test_cycles_and_depth_do_no_harm(local: ResultStore) -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    again = local.load(save(local, [ring])).values[0]
    assert again[1] is again
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert set(encode([deep, 1]).refused) == {0}


def test_classes_of_a_script_can_be_read_by_another_process(local: ResultStore) -> None:
    code = """
    import sys
    from dataclasses import dataclass
    sys.path.insert(0, sys.argv[2])
    from tests.unit.data.test_results import save
    from pandaflow.data.results import ResultStore
    @dataclass
    class Point:
        x: int
    print(save(ResultStore(sys.argv[1]), [Point(3)]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), local.url, os.getcwd()],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert local.load(done.stdout.strip()).values[0].x == 3


# --- files that are not as they should be -----------------------------------------------


@pytest.mark.parametrize("values", [[1, 2, 3], [{1}, {2}]])
def test_every_corrupt_byte_and_every_cut_is_noticed(local: ResultStore, values: Any) -> None:
    location = save(local, values)
    path = path_of(local, location)
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=str(path)):
            local.load(location)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=str(path)):
            local.load(location)
    path.write_bytes(whole)
    assert local.load(location).values == values


def test_missing_files_are_data_errors(store: ResultStore) -> None:
    for read in (store.load, store.header):
        with pytest.raises(DataError, match=r"values/000/9\.values"):
            read("values/000/9.values")


def test_values_whose_code_is_gone_are_data_errors(local: ResultStore, tmp_path: Path) -> None:
    (tmp_path / "vanishing.py").write_text("class Point: pass")
    sys.path.insert(0, str(tmp_path))
    try:
        import vanishing

        location = save(local, [vanishing.Point()])
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["vanishing"]
    with pytest.raises(DataError, match="vanishing"):
        local.load(location)
    assert local.header(location)["encoding"] == "pickle"


def test_files_of_a_later_version_are_refused(local: ResultStore, monkeypatch: Any) -> None:
    monkeypatch.setattr("pandaflow.data.results.VERSION", 99)
    location = save(local, [1])
    monkeypatch.undo()
    with pytest.raises(DataError, match="version 99"):
        local.load(location)


def test_a_failed_write_leaves_nothing_behind(local: ResultStore) -> None:
    save(local, [1], bundle=1)
    folder = path_of(local, "values/000")
    target = folder / "3.values"
    target.mkdir()  # renaming onto it fails
    with pytest.raises(OSError):
        save(local, [1])
    assert sorted(os.listdir(folder)) == ["1.values", "3.values"]


# --- claims -----------------------------------------------------------------------------


def test_a_bundle_is_claimed_once(local: ResultStore) -> None:
    claim = local.claim(5, 1)
    assert claim is not None and local.claim(5, 1) is None and local.claim(6, 1) is not None
    assert local.claimed_position(5) is None
    claim.slot[0] = 12
    assert local.claimed_position(5) == 12
    claim.remove()
    claim.remove()
    assert local.claimed_position(5) is None and local.claim(5, 1) is not None


def test_of_many_takers_one_gets_the_claim(local: ResultStore) -> None:
    start, got = threading.Barrier(8), []

    def take() -> None:
        start.wait()
        got.append(local.claim(1, 1) is not None)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


def test_the_position_survives_sigkill(local: ResultStore) -> None:
    code = """
    import os, signal, sys
    from pandaflow.data.results import ResultStore
    claim = ResultStore(sys.argv[1]).claim(1, 1)
    for claim.slot[0] in range(42): pass
    os.kill(os.getpid(), signal.SIGKILL)
    """
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), local.url], env=env)
    assert done.returncode == -9 and local.claimed_position(1) == 41


def test_object_stores_fence_nothing() -> None:
    pytest.importorskip("fsspec")
    store = ResultStore("memory://results/run2")
    first, second = store.claim(1, 1), store.claim(1, 1)
    assert first is not None and second is not None
    first.slot[0] = 3
    assert store.claimed_position(1) is None
    first.remove()


# --- logs and outputs -------------------------------------------------------------------


def test_logs_can_be_read_in_parts(store: ResultStore) -> None:
    assert store.read_log(1) == ""
    with store.open_log(1) as file:
        file.write("one µ\ntwo\n".encode())
    assert store.read_log(1) == "one µ\ntwo\n" and store.read_log(1, (7, 4)) == "two\n"


def test_output_files_are_moved_in(store: ResultStore, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("content")
    target = store.adopt(str(path), "files/fill/0.1/out")
    assert not path.exists() and store.get("files/fill/0.1/out") == b"content"
    assert target.endswith("run1/files/fill/0.1/out")


def test_output_files_cross_file_systems(local: ResultStore, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    path = other / f"pandaflow-test-{os.getpid()}"
    path.write_text("content")
    local.adopt(str(path), "files/out")
    assert not path.exists() and local.get("files/out") == b"content"
    assert os.listdir(path_of(local, "files")) == ["out"]


def test_files_can_be_read_by_the_group_as_the_umask_says(local: ResultStore) -> None:
    location = save(local, [1])
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path_of(local, location).stat().st_mode) == 0o666 & ~umask


def test_local_folders_need_no_fsspec(tmp_path: Path) -> None:
    code = """
    import sys
    from pandaflow.data.results import ResultStore
    ResultStore(sys.argv[1]).put("a", b"")
    assert not {"fsspec", "dask", "distributed", "cloudpickle", "numpy"} & set(sys.modules)
    """
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], env=env, check=True
    )


def test_cloudpickle_is_the_second_opinion() -> None:
    encoded = encode([lambda x: x + 1])
    assert encoded.encoding == "pickle" and cloudpickle.loads(encoded.body)[0](1) == 2


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret", "memory://x/y"])
def test_names_of_blobs_do_not_lead_out_of_the_run(tmp_path: Any, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(DataError, match="no name of a blob"):
        ResultStore(str(tmp_path / "run")).get(name)
