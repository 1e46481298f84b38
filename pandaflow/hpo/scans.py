"""Scans: an objective evaluated over a design that is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pandaflow.hpo.dimensions import Float, Int, choice
from pandaflow.hpo.optimizers.designs import grid, points
from pandaflow.hpo.searching import as_objective
from pandaflow.hpo.space import Space, parse_space
from pandaflow.hpo.study import Study


def scan(
    objective: Any,
    design: Any,
    *,
    name: str | None = None,
    store: Any = None,
    optimizer: Any = None,
    **settings: Any,
) -> Study:
    """Evaluate an objective at every point of a grid, a list or another design.

    Parameters
    ----------
    objective : task, workflow or function
    design : dict, list or Space
        A dict of lists is a grid (the last parameter varies fastest); a list of dicts is taken
        as it is; a space needs ``optimizer=hpo.grid(points=...)``, ``hpo.sobol(n)`` or
        ``hpo.lhs(n)``.
    name : str, optional
        The study's name; default: ``scan-`` and the objective's.
    store : optional
    optimizer : optional
        The design over a space; default: its grid.
    **settings
        As for :meth:`Study.optimize`; other keywords are arguments of the objective.

    Returns
    -------
    Study
        With one trial for each point; run again it goes on where it ended.

    Examples
    --------
    >>> from pandaflow import hpo
    >>> study = hpo.scan(fit, {"c": [1, 10], "gamma": [0.1, 1.0]})  # doctest: +SKIP
    """
    space, chosen = _designed(design, optimizer)
    size = chosen.size(space)
    study = Study(name or f"scan-{as_objective(objective).name}", store=store, optimizer=chosen)
    limit = {} if size is None else {"n_trials": size}
    return study.optimize(objective, space, **{"max_failed": 1.0, **limit, **settings})


def _designed(design: Any, optimizer: Any) -> tuple[Any, Any]:
    if isinstance(design, list | tuple):
        listed = list(design)
        return _space_of(listed), points(listed)
    if isinstance(design, Mapping) and optimizer is None:
        design = {
            name: choice(list(values)) if isinstance(values, list | tuple) else values
            for name, values in design.items()
        }
    return parse_space(design), grid() if optimizer is None else optimizer


def _space_of(listed: list[Mapping[str, Any]]) -> Space:
    """Return the smallest space that holds all points of a list."""
    names = list(dict.fromkeys(name for point in listed for name in point))
    return Space({name: _dimension([p[name] for p in listed if name in p]) for name in names})


def _dimension(values: list[Any]) -> Any:
    kinds = {type(value) for value in values}
    if kinds <= {int}:
        return Int(min(values), max(values))
    if kinds <= {int, float}:
        return Float(float(min(values)), float(max(values)))
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return choice(distinct)
