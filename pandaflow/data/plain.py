"""Pickles of plain values, read without running anybody's code.

Drivers read what users, payloads and pilots have written. Python's own unpickler imports what a
pickle names and calls it; the machine here knows the operations that plain values need, and makes
objects of a fixed table of classes only. Everything else is refused by name before it exists.

Rule 1: no import, no attribute and no method of a class outside the table is ever looked up.
Rule 2: classes of the table are frozen dataclasses with slots; their fields are set once.
Rule 3: time and memory are bounded by the size of what is read.
"""

from __future__ import annotations

import datetime
import decimal
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

from pandaflow.core import bundle, chunking, model, slices, template
from pandaflow.core.errors import DataError

#: Bytes of a pickle, unpacked; what is larger travels as files.
LIMIT = 2 << 30
#: Operations of one pickle, each of which may make an object.
_STEPS = 5_000_000
#: Tuples in tuples: Python's hash of them uses the stack of the processor.
_DEPTH = 200
#: Values that one may have when all that it repeats is counted each time.
_WEIGHT = 10_000_000
#: Letters of a text that count as much as a value.
_LETTERS = 64

#: PandaFlow's own values; callers name further classes where they expect them.
OWN: tuple[type, ...] = (
    bundle.BundleSpec,
    bundle.Missing,
    bundle.SourceSlice,
    chunking.Even,
    chunking.Fixed,
    chunking.NoItems,
    model.Choice,
    model.Concat,
    model.Cross,
    model.CrossPart,
    model.Failure,
    model.File,
    model.Input,
    model.LoopEnd,
    model.Output,
    model.Resources,
    model.Scattered,
    model.Source,
    slices.Shifted,
    template.NodeRef,
    template.Slot,
)
#: Classes of the standard library whose values are immutable, made by a call.
_MADE: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "complex"): complex,
    ("builtins", "range"): range,
    ("datetime", "date"): datetime.date,
    ("datetime", "datetime"): datetime.datetime,
    ("datetime", "time"): datetime.time,
    ("datetime", "timedelta"): datetime.timedelta,
    ("datetime", "timezone"): datetime.timezone,
    ("decimal", "Decimal"): decimal.Decimal,
    ("pathlib", "PosixPath"): pathlib.PosixPath,
    ("pathlib", "PurePosixPath"): pathlib.PurePosixPath,
    # Where Python 3.13 and later say that they are.
    ("pathlib._local", "PosixPath"): pathlib.PosixPath,
    ("pathlib._local", "PurePosixPath"): pathlib.PurePosixPath,
}


class NotPlain(DataError):
    """A pickle needs a class or a function that is not in the table; names it."""


def loads(data: bytes, kinds: Iterable[type] = ()) -> Any:
    """Return the value that was pickled.

    Parameters
    ----------
    data : bytes
        As ``pickle.dumps`` and cloudpickle write it, protocols 4 and 5.
    kinds : iterable of type
        Frozen dataclasses with slots that may be in it, besides :data:`OWN`.

    Raises
    ------
    NotPlain
        It holds something else than plain values; nothing of it was run.
    DataError
        It is damaged, too large, or not a pickle.
    """
    if len(data) > LIMIT:
        raise DataError(f"a pickle of {len(data)} bytes: {LIMIT} at most")
    machine = _Machine(data, _table(tuple(kinds)))
    try:
        value = machine.run()
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise DataError(f"a damaged pickle ({type(error).__name__}: {error})") from error
    if machine.shares:
        _weigh(value)
    return value


def frames(data: bytes) -> list[bytes]:
    """Return a list of bytes, as items and job graphs are kept; their contents stay as they are.

    Raises
    ------
    DataError
        It is something else.
    """
    value = loads(data)
    if type(value) is not list or not all(type(each) is bytes for each in value):
        raise DataError(f"{type(value).__name__} instead of a list of pickled values")
    return value


@lru_cache(maxsize=64)
def _table(kinds: tuple[type, ...]) -> dict[tuple[str, str], type]:
    known = (*OWN, *kinds)
    for kind in known:
        _check_kind(kind)
    return {(kind.__module__, kind.__qualname__): kind for kind in known}


def _check_kind(kind: type) -> None:
    if not (is_dataclass(kind) and "__slots__" in vars(kind) and _is_frozen(kind)):
        raise TypeError(f"{kind.__qualname__} is no frozen dataclass with slots")


def _is_frozen(kind: Any) -> bool:
    return bool(kind.__dataclass_params__.frozen)


def _weigh(value: object) -> None:
    """Refuse what is small only because it repeats itself: those who walk through it would not end.

    Raises
    ------
    DataError
    """
    weight, left = 0, [iter((value,))]
    while left:
        for inner in left[-1]:
            weight += 1 + (len(inner) // _LETTERS if isinstance(inner, str | bytes) else 0)
            if weight > _WEIGHT:
                raise DataError(f"a value that comes to more than {_WEIGHT} parts")
            parts = _parts(inner)
            if parts is not None:
                left.append(parts)
                break
        else:
            left.pop()


def _parts(value: object) -> Iterator[Any] | None:
    if isinstance(value, list | tuple | set | frozenset):
        return iter(value)
    if isinstance(value, dict):
        return (each for pair in value.items() for each in pair)
    if is_dataclass(value) and not isinstance(value, type):
        return (getattr(value, field.name) for field in fields(value))
    return None


# --- the machine ------------------------------------------------------------------------


class _Class:
    """A class of the table while it lies on the stack: it can only be made an object of."""

    __slots__ = ("kind",)

    def __init__(self, kind: type) -> None:
        self.kind = kind


class _Maker:
    """A call that makes a value of the standard library."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


class _Machine:
    """Carries out the operations of one pickle.

    Parameters
    ----------
    data : bytes
    table : dict of (str, str) to type
        Classes by module and name.

    Attributes
    ----------
    shares : bool
        A container was used more than once.
    """

    def __init__(self, data: bytes, table: dict[tuple[str, str], type]) -> None:
        self._data, self._at, self._table = data, 0, table
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        #: Objects whose fields are not set yet, by identity.
        self._bare: dict[int, Any] = {}
        #: How deep tuples are, and the tuples: identities of objects that are gone come again.
        self._deep: dict[int, tuple[int, Any]] = {}
        self.shares = False

    def run(self) -> Any:
        for _ in range(_STEPS):
            code = self._data[self._at]
            self._at += 1
            if code == _STOP:
                return self._result()
            step = _STEPS_BY_CODE.get(code)
            if step is None:
                raise NotPlain(
                    f"operation {bytes((code,))!r} of a pickle, which no plain value has"
                )
            step(self)
        raise DataError(f"a pickle of more than {_STEPS} operations")

    def _result(self) -> Any:
        (value,) = self._stack
        if self._bare or self._marks or isinstance(value, _Class | _Maker):
            raise ValueError("its end is missing")
        return value

    # --- bytes of the pickle ------------------------------------------------------------

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ValueError("it is cut short")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    # --- the stack ----------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise ValueError("its stack is empty")
        return self._stack.pop()

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def top(self, *kinds: type) -> Any:
        value = self._stack[-1]
        if type(value) not in kinds:
            raise ValueError(f"{type(value).__name__} is not filled")
        return value

    def values(self, found: list[Any]) -> list[Any]:
        """Refuse what is no value: a class would be one that others could use."""
        if any(isinstance(each, _Class | _Maker) for each in found):
            raise NotPlain("a class or a function as a value")
        return found

    def keep(self) -> None:
        self._memo.append(self._stack[-1])

    def again(self, index: int) -> None:
        value = self._memo[index]
        self.shares = self.shares or _is_large(value)
        self.push(value)

    # --- containers ---------------------------------------------------------------------

    def push_tuple(self, found: list[Any], kind: type = tuple) -> None:
        inner = self.values(found)
        deep = self._deep
        depth = 1 + max((deep[id(each)][0] for each in inner if id(each) in deep), default=0)
        if depth > _DEPTH:
            raise DataError(f"tuples in tuples more than {_DEPTH} deep")
        value = kind(inner)
        if inner:
            self._deep[id(value)] = (depth, value)
        self.push(value)

    def extend(self, found: list[Any]) -> None:
        self.top(list).extend(self.values(found))

    def update(self, found: list[Any]) -> None:
        keys, values = self.values(found)[::2], found[1::2]
        self.top(dict).update(zip(keys, values, strict=True))

    def add(self, found: list[Any]) -> None:
        self.top(set).update(self.values(found))

    # --- objects ------------------------------------------------------------------------

    def named(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name that is no text")
        if (kind := self._table.get((module, name))) is not None:
            self.push(_Class(kind))
        elif (make := _MADE.get((module, name))) is not None:
            self.push(_Maker(make))
        else:
            raise NotPlain(f"{module}.{name}"[:200] + " is no class of plain values")

    def reduce(self) -> None:
        arguments, maker = self.pop(), self.pop()
        if not isinstance(maker, _Maker) or type(arguments) is not tuple:
            raise NotPlain("a call of something that makes no plain value")
        self.push(maker.make(*arguments))

    def new(self) -> None:
        arguments, made = self.pop(), self.pop()
        if not isinstance(made, _Class) or arguments != ():
            raise NotPlain("an object that is made in another way than ours are")
        value: Any = object.__new__(made.kind)
        self._bare[id(value)] = value
        self.push(value)

    def build(self) -> None:
        state = self.pop()
        value = self._stack[-1]
        if self._bare.pop(id(value), None) is None or type(state) is not list:
            raise NotPlain(f"fields of {type(value).__name__}, which has them already, or no such")
        for field, each in zip(fields(value), state, strict=True):
            object.__setattr__(value, field.name, each)


def _text(machine: _Machine, width: int) -> None:
    machine.push(machine.take(machine.number(width)).decode("utf-8", "surrogatepass"))


def _long(machine: _Machine, width: int) -> None:
    machine.push(int.from_bytes(machine.take(machine.number(width)), "little", signed=True))


def _protocol(machine: _Machine) -> None:
    if machine.number(1) not in (4, 5):
        raise ValueError("a protocol that nobody writes")


def _last(machine: _Machine, count: int) -> list[Any]:
    return [machine.pop() for _ in range(count)][::-1]


def _is_large(value: object) -> bool:
    """Tell whether repeating a value may come to much."""
    if isinstance(value, str | bytes):
        return len(value) > _LETTERS
    return not isinstance(value, int | _Class | _Maker)


_Step = Callable[[_Machine], object]
_STOP = ord(".")
_STEPS_BY_CODE: dict[int, _Step] = {
    ord(code): step
    for code, step in {
        b"\x80": _protocol,
        b"\x95": lambda m: m.take(8),
        b"(": _Machine.mark,
        # values
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"J": lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
        b"K": lambda m: m.push(m.number(1)),
        b"M": lambda m: m.push(m.number(2)),
        b"\x8a": lambda m: _long(m, 1),
        b"\x8b": lambda m: _long(m, 4),
        b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        b"\x8c": lambda m: _text(m, 1),
        b"X": lambda m: _text(m, 4),
        b"\x8d": lambda m: _text(m, 8),
        b"C": lambda m: m.push(m.take(m.number(1))),
        b"B": lambda m: m.push(m.take(m.number(4))),
        b"\x8e": lambda m: m.push(m.take(m.number(8))),
        b"\x96": lambda m: m.push(bytearray(m.take(m.number(8)))),
        # containers
        b")": lambda m: m.push(()),
        b"t": lambda m: m.push_tuple(m.since_mark()),
        b"\x85": lambda m: m.push_tuple(_last(m, 1)),
        b"\x86": lambda m: m.push_tuple(_last(m, 2)),
        b"\x87": lambda m: m.push_tuple(_last(m, 3)),
        b"\x91": lambda m: m.push_tuple(m.since_mark(), frozenset),
        b"]": lambda m: m.push([]),
        b"a": lambda m: m.extend(_last(m, 1)),
        b"e": lambda m: m.extend(m.since_mark()),
        b"}": lambda m: m.push({}),
        b"s": lambda m: m.update(_last(m, 2)),
        b"u": lambda m: m.update(m.since_mark()),
        b"\x8f": lambda m: m.push(set()),
        b"\x90": lambda m: m.add(m.since_mark()),
        # what was there before
        b"\x94": _Machine.keep,
        b"h": lambda m: m.again(m.number(1)),
        b"j": lambda m: m.again(m.number(4)),
        # objects
        b"\x93": _Machine.named,
        b"R": _Machine.reduce,
        b"\x81": _Machine.new,
        b"b": _Machine.build,
    }.items()
}
