"""What Optuna keeps on trials: building them, and their attributes as JSON."""

from __future__ import annotations

import base64
import json
import logging
import math
import warnings
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pandaflow.hpo.port import Told, TrialState

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

#: Names of our studies begin so.
STUDY_NAME = "pandaflow-study-"


def frozen(
    told: Told | None,
    given: tuple[dict[str, Any], dict[str, Any]],
    attrs: dict[str, Any],
    reports: dict[int, float],
) -> FrozenTrial:
    """Return a trial as Optuna would hold it after the same events.

    Parameters
    ----------
    told : Told or None
        None while it runs.
    given : tuple of dicts
        Params and distributions.
    attrs : dict
        What sampler and pruner set on it.
    reports : dict of int to float
        Intermediate values by step.
    """
    import optuna

    states: dict[TrialState, Any] = {
        "complete": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    params, distributions = given
    ended = told is not None and told.state != "failed"
    return optuna.trial.create_trial(
        state=states[told.state] if told else optuna.trial.TrialState.RUNNING,
        values=_values(told, reports),
        params=params,
        distributions=distributions,
        system_attrs=attrs,
        intermediate_values=reports,
        constraints={f"c{k}": c for k, c in enumerate(told.constraints)}
        if told is not None and ended
        else None,
    )


def _values(told: Told | None, reports: Mapping[int, float]) -> list[float] | None:
    if told is None or told.state == "failed":
        return None
    if told.state == "complete":
        return list(told.values)
    last = reports[max(reports)] if reports else math.nan
    return None if math.isnan(last) else [last]


# --- attributes as JSON -----------------------------------------------------------------

_RELATIVE = "tpe:relative_params:"


def kept(trial: FrozenTrial) -> dict[str, Any]:
    """Return the attributes that cannot be had from the log otherwise."""
    attrs = trial.system_attrs
    # TPE notes its draw for the time until the parameters are suggested one by one. It matters
    # later only if the trial never asked for one of them.
    spoken = "".join(v for k, v in sorted(attrs.items()) if k.startswith(_RELATIVE))
    needless = not spoken or json.loads(spoken).keys() <= trial.params.keys()
    return {
        key: value
        for key, value in attrs.items()
        if not (
            key.startswith("constraints:")
            or key == "search_space"
            or (needless and key.startswith(_RELATIVE))
        )
    }


def of_pruner(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that successive halving set."""
    return {key: value for key, value in attrs.items() if key.startswith("completed_rung_")}


def packed(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes with CMA's hexadecimal pickle shortened and infinities as text."""
    out: dict[str, Any] = {}
    hexa: dict[str, list[tuple[int, str]]] = {}
    for key, value in attrs.items():
        stem, _, part = key.rpartition(":")
        if stem.endswith(":optimizer"):
            hexa.setdefault(stem, []).append((int(part), value))
        elif isinstance(value, float) and not math.isfinite(value):
            out[key] = {"float": repr(value)}
        else:
            out[key] = value
    for stem, parts in hexa.items():
        short = zlib.compress(bytes.fromhex("".join(text for _, text in sorted(parts))))
        out[stem] = base64.b64encode(short).decode()
    return out


def unpacked(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as they were before :func:`packed`."""
    out: dict[str, Any] = {}
    for key, value in attrs.items():
        if key.endswith(":optimizer"):
            out[f"{key}:0"] = zlib.decompress(base64.b64decode(value)).hex()
        elif isinstance(value, dict) and value.keys() == {"float"}:
            out[key] = float(value["float"])
        else:
            out[key] = value
    return out


# --- silence ----------------------------------------------------------------------------


class _Ours(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return STUDY_NAME not in record.getMessage()


_OURS = _Ours()


def silence() -> None:
    """Keep Optuna from announcing our studies and the experiments that we ask for.

    Nothing else of Optuna's is silenced, and no warning of the user's own code: the filters
    name our modules and our studies, so they can stay, which ``catch_warnings`` in a process
    with threads cannot.
    """
    from optuna.exceptions import ExperimentalWarning

    ours = r"pandaflow\.hpo\.optimizers\.optuna|optuna\._experimental"
    warnings.filterwarnings("ignore", category=ExperimentalWarning, module=ours)
    # Pruners mention steps that others did not reach.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"optuna\.pruners")
    logging.getLogger("optuna.storages._in_memory").addFilter(_OURS)
