"""The machine that reads pickles of plain values and runs nothing."""

from __future__ import annotations

import datetime
import os
import pathlib
import pickle
import pickletools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.bundle import BundleSpec, Missing, SourceSlice
from pandaflow.core.chunking import Even, Fixed
from pandaflow.core.errors import DataError
from pandaflow.core.model import Cross, CrossPart, Failure, File, Input, Output, Resources, Source
from pandaflow.core.slices import Shifted
from pandaflow.core.template import NodeRef, Slot
from pandaflow.data import plain
from pandaflow.data.plain import NotPlain

numbers = st.integers(0, 10**6)
ours = st.one_of(
    st.builds(File, st.text(), st.none() | numbers, st.none() | st.text()),
    st.builds(Missing, st.text(), st.booleans()),
    st.builds(Failure, kind=st.text(), message=st.text(), mro=st.tuples(st.text())),
    st.builds(Resources, cores=st.integers(1, 64), memory=st.none() | numbers),
    st.builds(Input, st.builds(Cross, st.tuples(st.builds(Source, numbers)))),
    st.builds(CrossPart, st.just(Cross((Output(1), Source(2)))), numbers),
    st.builds(Slot, numbers),
    st.builds(NodeRef, st.text()),
    st.builds(Fixed, numbers, st.integers(1, 9)),
    st.builds(Even, numbers, st.integers(1, 9)),
    st.builds(Shifted, numbers, st.tuples(numbers, numbers)),
)
stdlib = st.one_of(
    st.dates(),
    st.datetimes(timezones=st.none() | st.just(datetime.UTC)),
    st.times(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.builds(range, numbers, numbers),
    st.text(st.characters(codec="utf-8", exclude_characters="\0")).map(pathlib.PurePosixPath),
)
letters = st.text() | st.sampled_from(["\ud800", "x" * 300])
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), letters, st.binary()
)
keys = scalars | st.tuples(scalars, scalars) | ours | stdlib
values = st.recursive(
    scalars | ours | stdlib | st.binary().map(bytearray),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(keys, inner),
        st.sets(keys),
        st.frozensets(keys),
        inner.map(lambda each: [each, each]),
    ),
    max_leaves=20,
)


@given(values)
def test_plain_values_come_out_as_they_went_in(value: Any) -> None:
    found = plain.loads(pickle.dumps(value, protocol=5))
    assert found == value
    assert type(found) is type(value)
    assert plain.loads(cloudpickle.dumps(value)) == value


def test_large_values_come_out(tmp_path: Path) -> None:
    spec = BundleSpec(
        run="r",
        bundle=70_000,
        task=1,
        name="n",
        token="t",
        kind="function",
        jobs=tuple(range(0, 70_000, 7)),
        attempt=1,
        lists=True,
        inputs=(Input(Source(0)),),
        chunks=Fixed(9),
        sources={0: SourceSlice(0, tuple(File(f"/x/{n}", n) for n in range(1_000)))},
        absent=frozenset((n, n) for n in range(2_000)),
    )
    assert plain.loads(pickle.dumps(spec, protocol=5)) == spec
    many = [b"x" * 2**17, "y" * 2**17, 2**9_000, list(range(300_000))]
    assert plain.loads(pickle.dumps(many, protocol=5)) == many


@dataclass(frozen=True, slots=True)
class Mine:
    """A class that a caller names."""

    a: int
    b: str = ""


class Open:
    """A user's class."""


def test_classes_are_those_that_the_caller_names() -> None:
    data = pickle.dumps(Mine(1, "x"))
    assert plain.loads(data, (Mine,)) == Mine(1, "x")
    with pytest.raises(NotPlain, match="Mine is no class of plain values"):
        plain.loads(data)
    with pytest.raises(TypeError, match="no frozen dataclass"):
        plain.loads(data, (Open,))


def test_the_table_has_frozen_values_only() -> None:
    """Nothing in it can be changed by what is read: no code hangs on attributes that are set."""
    for kind in plain.OWN:
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert "__reduce__" not in vars(kind)
        assert fields(kind)  # type: ignore[arg-type]


class Calls:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Open(),
        Open,
        File,
        print,
        os.path.join,
        ValueError("x"),
        lambda: 1,
        Calls(os.system, "touch {}"),
        Calls(exec, "open('{}', 'w')"),
        Calls(open, "{}", "w"),
        Calls(getattr, File, "__init__"),
        Calls(File, "{}"),
        [File("a"), {"b": (Calls(os.system, "touch {}"),)}],
    ],
)
def test_everything_else_is_refused_by_name(value: Any, tmp_path: Path) -> None:
    data = cloudpickle.dumps(value).replace(b"{}", str(tmp_path / "r").encode())
    for refused in (data, cloudpickle.dumps([value])):
        with pytest.raises(DataError):
            plain.loads(refused)
    assert list(tmp_path.iterdir()) == []


@given(st.sampled_from(sorted(vars(os))), st.sampled_from(["os", "posix", "builtins", "sys"]))
def test_no_name_of_a_module_is_found(name: str, module: str) -> None:
    data = b"\x80\x04" + _word(module) + _word(name) + b"\x93."
    with pytest.raises(DataError):
        plain.loads(data)


def _word(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


@given(st.binary(max_size=60))
def test_noise_is_damaged(noise: bytes) -> None:
    try:
        plain.loads(b"\x80\x05" + noise)
    except DataError:
        pass


@given(values, st.data())
def test_damaged_pickles_are_refused_or_something_plain(value: Any, data: Any) -> None:
    packed = bytearray(pickle.dumps(value, protocol=5))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(at, len(packed)))
    # A damaged number may repeat much of it: that is refused, and need not take its time here.
    with mock.patch.object(plain, "_WEIGHT", 10_000):
        for damaged in (bytes(packed), bytes(packed[:cut])):
            try:
                found = plain.loads(damaged)
            except DataError:
                continue
            assert _is_plain(found)


def _is_plain(value: Any) -> bool:
    known = (*plain.OWN, *(each for each in plain._MADE.values() if isinstance(each, type)))
    basic = (type(None), bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset)
    return type(value) in (*known, *basic) or isinstance(value, pathlib.PurePath)


EMPTY, LIST, MEMO, STOP = b")", b"]", b"\x94", b"."


def _frozen(name: str) -> bytes:
    return _word("pandaflow.core.model") + _word(name) + b"\x93"


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        # A class would be changed for the whole process.
        (_frozen("File") + LIST + b"b", "fields of"),
        # An object that is built twice, or with fields of another's.
        (_frozen("Source") + EMPTY + b"\x81" + LIST + b"K\x01a" + _word("source") + b"ab", ""),
        (_frozen("Source") + EMPTY + b"\x81", "its end is missing"),
        (_frozen("Source") + EMPTY + b"R", "a call"),
        (_frozen("Source") + EMPTY + b"\x81" + b"}b", "fields"),
        # What plain values never need: persistent and extension ids, old and new ways to make.
        (b"K\x01Q", "operation"),
        (b"\x82\x01", "operation"),
        (_frozen("File") + b"}" + b"\x92", "operation"),
        (b"(ios\nsystem\n", "operation"),
        (b"cos\nsystem\n", "operation"),
        (b"\x97", "operation"),
        # A memo that would fill all memory, lengths beyond the end, nothing at all.
        (b"K\x01r\xff\xff\xff\x7f", "operation"),
        (b"\x8e" + b"\xff" * 7 + b"\x7f", "cut short"),
        (b"B\xff\xff\xff\x7f", "cut short"),
        (b"", "damaged"),
        (b"0", "operation"),
    ],
)
def test_tricks_of_the_machine_are_refused(steps: bytes, why: str) -> None:
    data = b"\x80\x05" + steps + STOP
    try:
        assert plain.loads(data) == Source(1)
    except DataError as error:
        assert why, error
        assert why in str(error)


def test_a_class_stays_as_it_is() -> None:
    before = dict(vars(File))
    for state in (b"}" + _word("__call__") + b"K\x01s", EMPTY):
        with pytest.raises(DataError):
            plain.loads(b"\x80\x05" + _frozen("File") + b"N" + state + b"\x86b.")
    assert dict(vars(File)) == before


def test_what_repeats_itself_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_WEIGHT", 100_000)
    laughs: Any = ["ha" * 50]
    for _ in range(60):
        laughs = [laughs, laughs]
    data = pickle.dumps(laughs, protocol=5)
    assert len(data) < 1_000
    with pytest.raises(DataError, match="parts"):
        plain.loads(data)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(DataError, match="parts"):
        plain.loads(pickle.dumps(loop, protocol=5))


def test_tuples_in_tuples_do_not_end_the_process() -> None:
    """Python's hash of a tuple goes down on the stack of the processor, unguarded."""
    depth = 1_000_000
    data = b"\x80\x05}" + EMPTY + b"\x85" * depth + b"Ns."
    with pytest.raises(DataError, match="deep"):
        plain.loads(data)


def test_pickles_have_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "LIMIT", 1_000)
    with pytest.raises(DataError, match="1000 at most"):
        plain.loads(pickle.dumps(bytes(2_000)))
    monkeypatch.setattr(plain, "_STEPS", 500)
    with pytest.raises(DataError, match="more than 500 operations"):
        plain.loads(b"\x80\x05(" + b"]" * 900 + b"t.")


def test_frames_are_a_list_of_bytes() -> None:
    assert plain.frames(cloudpickle.dumps([b"a", b"b"])) == [b"a", b"b"]
    for other in ({}, [1], [b"a", "b"], b"a", [bytearray(b"a")]):
        with pytest.raises(DataError, match="instead of a list"):
            plain.frames(pickle.dumps(other, protocol=5))


def test_every_operation_that_python_writes_for_plain_values_is_known() -> None:
    """Of the newest protocol; the others are the ones that reach beyond values."""
    beyond = {"NEWOBJ_EX", "NEXT_BUFFER", "READONLY_BUFFER"}
    known = set(plain._STEPS_BY_CODE) | {plain._STOP}
    lacking = {op.name for op in pickletools.opcodes if op.proto >= 4 and ord(op.code) not in known}
    assert lacking == beyond
