"""Settings come from the environment, are checked once, and stay as they are."""

from __future__ import annotations

import pytest

from pandaflow.config import DEFAULT_STORE, read_settings
from pandaflow.core.errors import WorkflowError


def test_defaults_need_no_environment() -> None:
    settings = read_settings({})
    assert settings.store == DEFAULT_STORE
    assert settings.results is None
    assert settings.log_level == "WARNING"


def test_variables_are_typed() -> None:
    settings = read_settings(
        {
            "PANDAFLOW_STORE": "postgresql+psycopg://panda@db/flow",
            "PANDAFLOW_LEASE_SECONDS": "2 min",
            "PANDAFLOW_LOG_LEVEL": "debug",
            "PANDAFLOW_OF_SOMEBODY_ELSE": "kept out",
        }
    )
    assert settings.store.startswith("postgresql")
    assert settings.lease_seconds == 120.0
    assert settings.log_level == "DEBUG"


def test_an_empty_variable_is_not_set() -> None:
    assert read_settings({"PANDAFLOW_STORE": ""}).store == DEFAULT_STORE


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANDAFLOW_STORE", "sqlite:///elsewhere.db")
    assert read_settings().store == "sqlite:///elsewhere.db"


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("PANDAFLOW_LEASE_SECONDS", "soon"),
        ("PANDAFLOW_LEASE_SECONDS", "0.5"),
        ("PANDAFLOW_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_is_named(name: str, bad: str) -> None:
    with pytest.raises(WorkflowError, match=name):
        read_settings({name: bad})


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError):
        read_settings({}).store = "sqlite://"  # type: ignore[misc]
