"""Options of the command line made from the signature of a workflow function.

The annotation decides how a text is read, else the type of the default. A parameter with
neither reads ``files:GLOB`` and ``items:[...]`` as datasets, Python literals (``5``, ``2.5``,
``[1, 2]``, ``None``) as what they are, and everything else as text.
"""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import click

from pandaflow.core.errors import WorkflowError

if TYPE_CHECKING:
    from pandaflow.workflows import WorkflowFunction

EMPTY = inspect.Parameter.empty
_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)
_CONTAINERS: Mapping[Any, Callable[[Any], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    Sequence: list,
    Collection: list,
}


class Parsed(click.ParamType[Any]):
    """A click type around a function that reads a text.

    Parameters
    ----------
    name : str
        For help texts.
    parse : callable
        Text in, value out; raises ValueError (a WorkflowError is one) when it cannot.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value that a text stands for."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except (ValueError, SyntaxError, OSError) as error:
            self.fail(str(error) or f"{value!r} is no {self.name}", param, ctx)


def literal(text: str) -> Any:
    """Return a Python literal as its value, any other text as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _strict_literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"{text!r} is not a Python literal such as 5, [1, 2] or 'text'") from None


def _sourced(text: str) -> Any:
    """Return the dataset of ``files:GLOB`` or ``items:[...]``; None for any other text."""
    from pandaflow.authoring import sources

    kind, colon, rest = text.partition(":")
    if colon and kind == "files":
        return sources.files(rest)
    if colon and kind == "items":
        return sources.items(_strict_literal(rest))
    return None


def value(text: str) -> Any:
    """Read a text for a parameter of unknown type."""
    found = _sourced(text)
    return literal(text) if found is None else found


def dataset(text: str) -> Any:
    """Read a text for a parameter that is a dataset: a list is its items, else it is a glob."""
    from pandaflow.authoring import sources

    found = _sourced(text)
    if found is not None:
        return found
    if text.startswith(("[", "(", "range(")):
        return sources.items(_range(text) if text.startswith("range(") else _strict_literal(text))
    return sources.files(text)


def _range(text: str) -> range:
    bounds = _strict_literal(text.removeprefix("range").replace(")", ",)"))
    if not 1 <= len(bounds) <= 3:
        raise ValueError(f"{text!r} is not a range")
    return range(*bounds)


# --- types of options ---------------------------------------------------------------------


def kind_of(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    """Return the type of a parameter: its annotation, else that of its default, else unknown."""
    hint = _plain(hints.get(parameter.name, EMPTY))
    if hint is not EMPTY and hint is not Any:
        return hint
    default = parameter.default
    if isinstance(default, bool | int | float | str | Path | Enum):
        return type(default)
    return EMPTY


def _plain(hint: Any) -> Any:
    """Take ``Annotated`` and ``| None`` off a type."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        return _plain(members[0]) if len(members) == 1 else EMPTY
    return hint


def click_type(kind: Any) -> click.ParamType[Any]:
    """Return the click type that reads a text as ``kind``."""
    simple: dict[Any, click.ParamType[Any]] = {
        str: click.STRING,
        int: click.INT,
        float: click.FLOAT,
        bool: click.BOOL,
        Path: click.Path(path_type=Path),
        EMPTY: Parsed("value", value),
    }
    if isinstance(kind, type) and kind in simple:
        return simple[kind]
    if get_origin(kind) is Literal:
        return _choice({str(member): member for member in get_args(kind)})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choice({member.name: member for member in kind})
    if isinstance(kind, type):
        return _class_type(kind)
    return Parsed("value", value)


def _class_type(kind: type) -> click.ParamType[Any]:
    from pandaflow.authoring.collections import Collection as Items
    from pandaflow.core.model import File

    if issubclass(kind, Items):
        return Parsed("dataset", dataset)
    if issubclass(kind, File):
        return Parsed("file", File)
    return Parsed("literal", _strict_literal)


def _choice(members: Mapping[str, Any]) -> click.ParamType[Any]:
    def parse(text: str) -> Any:
        if text in members:
            return members[text]
        raise ValueError(f"{text!r} is not one of {', '.join(members)}")

    return Parsed("|".join(members), parse)


# --- options ------------------------------------------------------------------------------


def options_of(workflow: WorkflowFunction) -> list[click.Option]:
    """Return one option for each parameter of a workflow function."""
    from pandaflow.core.signature import hints

    known = hints(inspect.unwrap(workflow))
    named = [p for p in workflow.signature.parameters.values() if p.kind in _NAMED]
    return [_option(parameter, kind_of(parameter, known)) for parameter in named]


def _option(parameter: inspect.Parameter, kind: Any) -> click.Option:
    needed = parameter.default is EMPTY
    dashed = "--" + parameter.name.replace("_", "-")
    spelled = dict.fromkeys([dashed, "--" + parameter.name])
    text = "" if needed else f"[default: {parameter.default!r}]"
    if kind is bool:
        flags = f"{dashed}/--no-{dashed.removeprefix('--')}"
        return click.Option([flags, parameter.name], required=needed, default=None, help=text)
    container = _CONTAINERS.get(get_origin(kind) or kind)
    inner = next(iter(get_args(kind)), EMPTY) if container else kind
    if container:
        text = f"May be repeated. {text}".strip()
    return click.Option(
        [*spelled, parameter.name],
        type=click_type(_plain(inner)),
        required=needed,
        multiple=container is not None,
        callback=_into(container) if container else None,
        help=text,
    )


def _into(container: Callable[[Any], Any]) -> Callable[[Any, Any, Any], Any]:
    def convert(_ctx: click.Context, _param: click.Parameter, values: Any) -> Any:
        return container(values) if values else None

    return convert


def split_settings(settings: Sequence[str]) -> list[str]:
    """Return ``-P name=value`` settings as long options: ``--name=value``.

    Raises
    ------
    WorkflowError
        A setting has no ``=``.
    """
    for setting in settings:
        if not setting.partition("=")[1]:
            raise WorkflowError(f"-P {setting!r}: write -P NAME=VALUE")
    return [f"--{setting}" for setting in settings]


def command_of(workflow: WorkflowFunction, target: str) -> click.Command:
    """Return a command whose options are the parameters of ``workflow``."""
    return click.Command(
        name=target,
        params=[*options_of(workflow)],
        help=inspect.getdoc(inspect.unwrap(workflow)),
    )


def arguments(
    workflow: WorkflowFunction, target: str, texts: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read the texts of a command line as arguments of ``workflow``.

    Returns
    -------
    args : tuple
    kwargs : dict
        What was not given is left to the function's defaults.

    Raises
    ------
    click.UsageError
        A parameter is unknown, missing, or cannot be read.
    """
    around = click.get_current_context(silent=True)
    path = f"{around.command_path} {target}" if around else target
    with command_of(workflow, target).make_context(path, list(texts)) as ctx:
        given = {name: found for name, found in ctx.params.items() if found is not None}
    order = {name: given[name] for name in workflow.signature.parameters if name in given}
    bound = inspect.BoundArguments(workflow.signature, order)
    return bound.args, bound.kwargs
