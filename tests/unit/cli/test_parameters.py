"""A workflow's signature becomes options; texts become values of the right type."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.authoring.collections import Collection
from pandaflow.cli import parameters
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import File


class Channel(enum.Enum):
    ELECTRON = "e"
    MUON = "mu"


def _read(function: Callable[..., Any], *texts: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    workflow: Any = SimpleNamespace(
        name=function.__name__, signature=inspect.signature(function), __wrapped__=function
    )
    return parameters.arguments(workflow, "analysis.py:w", texts)


def _bound(function: Callable[..., Any], *texts: str) -> dict[str, Any]:
    args, kwargs = _read(function, *texts)
    return dict(inspect.signature(function).bind(*args, **kwargs).arguments)


def test_annotations_decide() -> None:
    def w(
        bins: int,
        scale: float,
        label: str,
        out: Path,
        tight: bool,
        channel: Channel,
        order: Literal["lo", "nlo", 3],
        calibration: File,
    ) -> None: ...

    assert _bound(
        w,
        *("--bins", "80", "--scale", "1e-3", "--label", "80", "--out", "a/b", "--no-tight"),
        *("--channel", "MUON", "--order", "3", "--calibration", "c.json"),
    ) == {
        "bins": 80,
        "scale": 1e-3,
        "label": "80",
        "out": Path("a/b"),
        "tight": False,
        "channel": Channel.MUON,
        "order": 3,
        "calibration": File("c.json"),
    }


def test_defaults_decide_without_annotation() -> None:
    def w(bins=60, scale=1.0, label="x", tight=False, channel=Channel.MUON):  # type: ignore[no-untyped-def]
        ...

    given_ = _bound(w, "--bins=7", "--scale=2", "--label=5", "--tight", "--channel=ELECTRON")
    assert given_ == {
        "bins": 7,
        "scale": 2.0,
        "label": "5",
        "tight": True,
        "channel": Channel.ELECTRON,
    }


def test_what_is_not_given_is_left_to_the_function() -> None:
    def w(bins: int = 60, masses: list[float] | None = None, tight: bool = True) -> None: ...

    assert _bound(w) == {}


def test_optional_and_annotated_are_seen_through() -> None:
    def w(bins: int | None = None, scale: Annotated[float, "GeV"] = 1.0) -> None: ...

    assert _bound(w, "--bins", "3", "--scale", "2") == {"bins": 3, "scale": 2.0}


def test_containers_are_given_by_repeating() -> None:
    def w(
        masses: list[float], names: tuple[str, ...] = (), seeds: set[int] | None = None
    ) -> None: ...

    assert _bound(w, *"--masses 1 --masses 2.5 --names a --seeds 3 --seeds 3".split()) == {
        "masses": [1.0, 2.5],
        "names": ("a",),
        "seeds": {3},
    }


def test_underscores_may_be_dashes() -> None:
    def w(n_bins: int) -> None: ...

    assert _bound(w, "--n-bins", "3") == _bound(w, "--n_bins", "3") == {"n_bins": 3}


def test_positional_only_and_keyword_only_parameters_arrive() -> None:
    def w(sample: str, /, *, bins: int) -> None: ...

    assert _read(w, "--bins", "3", "--sample", "a") == (("a",), {"bins": 3})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 5),
        ("2.5", 2.5),
        ("true", True),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ("data.root", "data.root"),
        ("user:dataset", "user:dataset"),
        ("007", "007"),
    ],
)
def test_a_parameter_of_unknown_type_reads_literals(text: str, expected: object) -> None:
    assert parameters.value(text) == expected


@given(
    st.one_of(
        st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.integers())
    )
)
def test_literals_survive(value: object) -> None:
    assert parameters.literal(repr(value)) == value


def test_datasets_are_spelled_files_and_items(tmp_path: Path) -> None:
    for name in ("a.root", "b.root"):
        (tmp_path / name).write_bytes(b"x")

    def w(sample, more: Collection, seeds: Collection):  # type: ignore[no-untyped-def]
        ...

    bound = _bound(
        w,
        *("--sample", f"files:{tmp_path}/*.root"),
        *("--more", f"{tmp_path}/a.root", "--seeds", "range(2, 8, 2)"),
    )
    assert [file.name for file in bound["sample"].files()] == ["a.root", "b.root"]
    assert bound["more"].length == 1
    assert list(bound["seeds"].items) == [2, 4, 6]
    assert parameters.dataset("[1, 2, 3]").length == parameters.value("items:[1, 2, 3]").length == 3


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ((), "--bins"),
        (("--bins", "many"), "many"),
        (("--bins", "3", "--bin", "4"), "--bin"),
        (("--bins", "3", "--channel", "TAU"), "ELECTRON"),
        (("--bins", "3", "stray"), "stray"),
    ],
)
def test_a_bad_command_line_is_a_usage_error(texts: tuple[str, ...], told: str) -> None:
    def w(bins: int, channel: Channel = Channel.MUON) -> None: ...

    with pytest.raises(click.UsageError) as error:
        _read(w, *texts)
    assert told in error.value.format_message()


def test_files_that_are_not_there_are_a_usage_error(tmp_path: Path) -> None:
    def w(sample):  # type: ignore[no-untyped-def]
        ...

    with pytest.raises(click.UsageError, match=r"nothing\.root"):
        _read(w, "--sample", f"files:{tmp_path}/nothing.root")


def test_settings_become_options() -> None:
    assert parameters.split_settings(["name=a=b", "k="]) == ["--name=a=b", "--k="]
    with pytest.raises(WorkflowError, match="NAME=VALUE"):
        parameters.split_settings(["name"])
