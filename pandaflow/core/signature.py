"""What a function's signature and code tell: types at the joints, and a token of the code."""

from __future__ import annotations

import hashlib
import inspect
import sysconfig
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin

UNKNOWN = inspect.Parameter.empty


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of ``function`` as types; those that cannot be read are left out."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError, SyntaxError):
        raw = getattr(function, "__annotations__", {})
        return {name: kind for name, kind in raw.items() if not isinstance(kind, str)}


def incompatible(given: Any, wanted: Any) -> bool:
    """Tell whether a value of type ``given`` can certainly not be passed as ``wanted``.

    Silence means "perhaps": only plain classes, unions and the first argument of containers
    are judged, as a type checker in the user's editor does the rest.
    """
    if UNKNOWN in (given, wanted) or Any in (given, wanted):
        return False
    if isinstance(given, typing.TypeVar) or isinstance(wanted, typing.TypeVar):
        return False
    for union in (given, wanted):
        if get_origin(union) in (typing.Union, types.UnionType):
            return _union_incompatible(given, wanted)
    plain_given, plain_wanted = get_origin(given) or given, get_origin(wanted) or wanted
    plain_given = type(None) if plain_given is None else plain_given
    plain_wanted = type(None) if plain_wanted is None else plain_wanted
    if not (isinstance(plain_given, type) and isinstance(plain_wanted, type)):
        return False
    if not _fits(plain_given, plain_wanted):
        return True
    inner_given, inner_wanted = get_args(given), get_args(wanted)
    if len(inner_given) == 1 and len(inner_wanted) == 1:
        return incompatible(inner_given[0], inner_wanted[0])
    return False


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _union_incompatible(given: Any, wanted: Any) -> bool:
    return all(incompatible(g, w) for g in _members(given) for w in _members(wanted))


def _fits(given: type, wanted: type) -> bool:
    # The numeric tower of PEP 484: an int is welcome where a float is, a bool where an int is.
    if wanted in (float, complex) and given in (int, float, bool):
        return True
    try:
        return issubclass(given, wanted) or issubclass(wanted, given)
    except TypeError:  # protocols that are not checkable at run time
        return True


def describe(kind: Any) -> str:
    """Return the name of a type as an author writes it."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def code_token(function: Callable[..., Any], extra: Sequence[bytes] = ()) -> str:
    """Return a hash of a function's code that is the same in every process.

    It covers byte code, constants, default values, and what the function names in turn: global
    constants, and functions of the user's own modules (those that are neither installed
    packages nor Python's). Changing a library does not make cached results stale; put its
    version among the arguments where that matters.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in extra:
        digest.update(part)
    _feed(digest, function, set())
    return digest.hexdigest()


def _feed(digest: hashlib.blake2b, function: Any, seen: set[int]) -> None:
    function = inspect.unwrap(getattr(function, "function", function))
    if id(function) in seen:
        return
    seen.add(id(function))
    code = getattr(function, "__code__", None)
    if code is None:
        digest.update(_name_of(function).encode())
        return
    _feed_code(digest, code)
    digest.update(repr(function.__defaults__).encode())
    digest.update(repr(function.__kwdefaults__).encode())
    for name in sorted(set(_names(code))):
        _feed_global(digest, function, name, seen)
    for cell in function.__closure__ or ():
        _feed_value(digest, _contents(cell), function, seen)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _name_of(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing))}"


def _feed_code(digest: hashlib.blake2b, code: types.CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _feed_code(digest, constant)
        elif isinstance(constant, frozenset):
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())


def _names(code: types.CodeType) -> list[str]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _names(constant)
    return names


def _feed_global(digest: hashlib.blake2b, function: Any, name: str, seen: set[int]) -> None:
    scope = function.__globals__
    if name in scope:
        digest.update(name.encode())
        _feed_value(digest, scope[name], function, seen)


def _feed_value(digest: hashlib.blake2b, value: Any, owner: Any, seen: set[int]) -> None:
    inner = getattr(value, "function", value)
    if isinstance(inner, types.FunctionType):
        if _own(inner):
            _feed(digest, inner, seen)
        else:
            digest.update(_name_of(inner).encode())
    elif isinstance(value, types.ModuleType):
        _feed_module(digest, value, owner, seen)
    elif isinstance(value, str | bytes | int | float | bool | tuple | type(None)):
        digest.update(repr(value).encode())
    else:
        digest.update(_name_of(value).encode())


def _feed_module(digest: hashlib.blake2b, module: Any, owner: Any, seen: set[int]) -> None:
    """A module is covered by those of its functions and constants that the code names."""
    digest.update(module.__name__.encode())
    if not _is_own_file(getattr(module, "__file__", None)):
        return
    for name in sorted(set(_names(owner.__code__))):
        value = vars(module).get(name)
        if isinstance(value, types.FunctionType | str | bytes | int | float | tuple):
            digest.update(name.encode())
            _feed_value(digest, value, owner, seen)


def _own(function: types.FunctionType) -> bool:
    """Whether a function is the user's: neither of an installed package nor Python's own."""
    return _is_own_file(function.__code__.co_filename)


def _is_own_file(path: str | None) -> bool:
    if path is None or path.startswith("<frozen"):
        return False
    places = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    installed = "site-packages" in path or "dist-packages" in path
    return not installed and not path.startswith(places)
