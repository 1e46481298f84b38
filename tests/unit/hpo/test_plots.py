"""Pictures of studies, their notebook view, and what is shown while they run."""

from __future__ import annotations

import io
import math
import random
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

import pandaflow as pf
from pandaflow import hpo
from pandaflow.core.errors import WorkflowError
from pandaflow.hpo import plots
from pandaflow.hpo.book import Book
from pandaflow.hpo.plots import Axis, study_html, study_svg, value_axis
from pandaflow.hpo.watching import StudyView, study_line

SPACE = hpo.Space(lr=hpo.log(1e-5, 1e-1), depth=hpo.int(2, 12), kind=["bdt", "nn"])
X = hpo.Space(x=hpo.float(-1, 1))
THREADS = pf.executors.Local(workers=2, processes=False)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


def told(store: str, name: str = "ttH", n: int = 15, **settings: Any) -> hpo.Study:
    """A study told by hand, with a failed trial."""
    study = hpo.Study(name, space=SPACE, store=store, optimizer=hpo.random(seed=5), **settings)
    several = len(study.directions)
    with study:
        for trial in study.ask_many(n):
            value = abs(math.log10(trial.params["lr"]) + 3) + trial.params["depth"]
            if trial.number == 2:
                study.tell(trial, state="failed")
            else:
                study.tell(trial, value if several == 1 else (value, *[-value] * (several - 1)))
    return study


@pf.task
def parabola(x: float, *, trial: Any) -> float:
    trial.report(x, step=0)
    if trial.number == 3:
        raise ValueError("unlucky")
    return x * x


def optimized(store: str, n_trials: int = 8, **options: Any) -> hpo.Study:
    study = hpo.Study("parabola", store=store, optimizer=hpo.random(seed=1))
    given: dict[str, Any] = {"n_trials": n_trials, "parallel": 2, "executor": THREADS}
    return study.optimize(parabola, X, **{**given, **options})


# --- Optuna's plots ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in plots.KINDS if k not in ("intermediate_values",)])
def test_each_plot_is_one_figure_and_leaves_nothing_behind(store: str, kind: str) -> None:
    pytest.importorskip("optuna")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    study = told(store, directions=["minimize"] * (2 if kind == "pareto_front" else 1))
    style, filters = dict(matplotlib.rcParams), list(warnings.filters)
    opened = pyplot.get_fignums()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.plot(study, kind)
        figure.savefig(io.BytesIO())
    assert isinstance(figure, matplotlib.figure.Figure)
    assert pyplot.get_fignums() == opened
    assert dict(matplotlib.rcParams) == style
    assert [f for f in warnings.filters if f not in filters and "pandaflow" not in str(f[3])] == []
    assert figure.get_suptitle().startswith("ttH: ")


def test_reports_are_drawn(store: str) -> None:
    pytest.importorskip("optuna")
    figure = optimized(store).plot_intermediate()
    assert len(figure.axes[0].get_lines()) == 7  # all but the failed one


def test_one_of_several_objectives_is_drawn(store: str) -> None:
    pytest.importorskip("optuna")
    study = told(store, directions=["minimize", "maximize"])
    figure = plots.plot(study, "optimization_history", objective=1)
    drawn = figure.axes[0].collections[0].get_offsets()[:, 1]
    assert sorted(drawn) == sorted(t.values[1] for t in study.book.complete())
    with pytest.raises(WorkflowError, match="objective=2, there are 2"):
        plots.plot(study, "slice", objective=2)


@pytest.mark.parametrize(
    ("n", "kind", "said"),
    [
        (0, "optimization_history", "no trials yet"),
        (1, "param_importances", "needs 2 complete trials; there are 1"),
        (1, "contour", "needs 2 complete trials; there are 1"),
        (3, "pareto_front", "two or three objectives, not 1"),
        (3, "intermediate_values", "no trial has reported"),
        (3, "nonsense", "no plot 'nonsense'; there are optimization_history"),
    ],
)
def test_what_cannot_be_drawn_is_told(store: str, n: int, kind: str, said: str) -> None:
    study = told(store, n=n) if n else hpo.Study("ttH", store=store)
    with pytest.raises(WorkflowError, match=said):
        plots.plot(study, kind)


def test_without_matplotlib_the_remedy_is_told(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = told(store)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(WorkflowError, match=r'pip install "pandaflow\[hpo\]"'):
        study.plot_history()


# --- the view ---------------------------------------------------------------------------


def test_the_view_tells_how_the_study_stands(store: str) -> None:
    study = told(store)
    html = study._repr_html_()
    assert "15 trials: 14 complete, 1 failed" in html
    assert f"best {study.best_value:.6g} (trial {study.best_trial.number})" in html
    assert f"depth={study.best_params['depth']}" in html
    numbers = re.findall(r'tabular-nums">(\d+)</td>', html.partition("<tbody>")[2])
    assert int(numbers[0]) == study.best_trial.number
    assert html.count("<tr") == 11
    assert ElementTree.fromstring(study_svg(study)).tag.endswith("svg")


def test_the_view_needs_neither_optuna_nor_matplotlib(store: str) -> None:
    told(store)
    code = f"""
        import sys
        from pandaflow import hpo
        html = hpo.load("ttH", {store!r})._repr_html_()
        assert "best" in html
        loaded = [m for m in ("optuna", "matplotlib", "pandas") if m in sys.modules]
        assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_a_new_study_has_a_view(store: str) -> None:
    html = hpo.Study("fresh", store=store)._repr_html_()
    assert "fresh" in html and "new" in html and "<svg" not in html


def test_names_are_escaped(store: str) -> None:
    html = told(store, name="<b>&")._repr_html_()
    assert "&lt;b&gt;&amp;" in html and "<b>&" not in html


def test_a_maximum_and_a_front_are_the_best(store: str) -> None:
    up = told(store, "up", direction="maximize")
    values = [t.values[0] for t in up.book.top()[:3]]
    assert values == sorted((t.values[0] for t in up.book.complete()), reverse=True)[:3]
    two = told(store, "two", directions=["minimize", "maximize"])
    html = study_html(two)
    assert "in the Pareto set" in html and "value 1" in html
    assert [t.number for t in two.book.top()] == [t.number for t in two.best_trials]


def test_the_border_of_the_front_by_hand() -> None:
    front = [(0.0, 9.0), (4.0, 5.0), (6.0, 1.0)]
    low = plots._stairs(front, "minimize")
    assert low == ((0.0, 9.0), (4.0, 9.0), (4.0, 5.0), (6.0, 5.0), (6.0, 1.0))
    high = plots._stairs(front, "maximize")
    assert high == ((0.0, 9.0), (0.0, 5.0), (4.0, 5.0), (4.0, 1.0), (6.0, 1.0))


def test_ticks_are_round_and_inside() -> None:
    places = Axis(-0.5, 103.0, 0.0, 1000.0).ticks(10)
    assert [text for _, text in places] == [str(n) for n in range(0, 101, 20)]
    assert all(0 <= place <= 1000 for place, _ in places)
    assert Axis(0.0, 0.05, 0, 1).ticks(5)[1][1] == "0.01"
    assert [text for _, text in Axis(-3.2, 1.1, 0, 1, log=True).ticks(5)] == [
        "0.001", "0.01", "0.1", "1", "10",
    ]  # fmt: skip


def test_wild_values_do_not_hide_the_others() -> None:
    values = [float(k) for k in range(-5, 95)] + [1e9]
    axis = value_axis(values, "minimize", 0.0, 100.0)
    assert not axis.log and axis(0.0) < 20 and axis(1e9) == 100.0
    down = value_axis([-v for v in values], "maximize", 0.0, 100.0)
    assert down(-1e9) == 0.0 and down(0.0) > 80
    assert value_axis([1e-6, 1e-3, 1.0], "minimize", 0.0, 1.0).log
    assert value_axis([7.0], "minimize", 0.0, 1.0)(7.0) == pytest.approx(0.5)
    assert value_axis([0.0], "minimize", 0.0, 1.0)(0.0) == pytest.approx(0.5)


def test_the_picture_of_many_trials_stays_small(store: str) -> None:
    study, rng = hpo.Study("many", store=store), random.Random(1)
    book = Book(["minimize"])
    for n in range(20_000):
        added = {"p": {"x": 0.5}, "by": "b", "s": "complete", "v": [rng.random()]}
        book.apply(n + 1, 1.0, "add", n, added)
    study._book = book
    assert len(study._repr_html_()) < 200_000


# --- while it runs ----------------------------------------------------------------------


def snapshot(status: str = "running", **changes: Any) -> dict[str, Any]:
    task = {"name": "trial", "status": status, "jobs": {"finished": 14}}
    return {"id": "r-1", "name": "ttH", "status": status, "tasks": [task], **changes}


def lines(view: StudyView, width: int = 130) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=30, force_terminal=False).print(view)
    return out.getvalue().splitlines()


def test_a_terminal_shows_the_run_and_the_study(store: str) -> None:
    study = told(store)
    view = StudyView(study, n_trials=45)
    view.update(snapshot(), 1000.0)
    assert "ETA" not in lines(view)[-2]
    with study:
        for trial in study.ask_many(5):
            study.tell(trial, 0.125)
    view.update(snapshot(), 1010.0)
    line = lines(view)[-2]
    assert "20/45 trials, 1 failed" in line
    assert "best 0.125 (trial 15)" in line
    assert "ETA 50.0 s" in line  # 5 trials in 10 s, 25 to go
    assert lines(view)[-1].strip().startswith("lr=")
    assert all(len(one) <= 60 for one in lines(view, 60))


def test_a_log_has_a_line_at_the_start_and_one_at_the_end(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = optimized(store)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert re.fullmatch(r"pandaflow: study parabola started: 8 trials wanted, run \S+", told[0])
    assert told[1] == f"pandaflow: study {study_line(study)}"
    optimized(store, n_trials=12)
    assert "8 trials known, 12 trials wanted" in capsys.readouterr().err


def test_jobs_that_run_in_the_caller_are_told_of_too(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[int] = []
    study = optimized(
        store,
        executor=pf.executors.Local(workers=0),
        callbacks=lambda study, trial: heard.append(trial.number),
    )
    assert heard == [t.number for t in sorted(study.trials, key=lambda t: t.ended)]
    assert [line.split()[3] for line in capsys.readouterr().err.splitlines()] == [
        "started:",
        "done:",
    ]


def test_progress_can_be_off(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    optimized(store, progress=False)
    assert capsys.readouterr().err == ""


def test_callbacks_hear_of_each_trial_once(store: str) -> None:
    heard: list[tuple[int, str]] = []

    def hear(study: hpo.Study, trial: Any) -> None:
        assert study.name == "parabola"
        heard.append((trial.number, trial.state))

    optimized(store, callbacks=hear)
    assert sorted(heard) == [(n, "failed" if n == 3 else "complete") for n in range(8)]
    optimized(store, n_trials=10, callbacks=hear)
    assert sorted(n for n, _ in heard) == list(range(10))


def test_a_callback_that_raises_stops_the_study_for_now(store: str) -> None:
    def break_down(study: hpo.Study, trial: Any) -> None:
        raise ZeroDivisionError("no more")

    with pytest.raises(ZeroDivisionError):
        optimized(store, callbacks=break_down)
    study = optimized(store, n_trials=20)
    assert (study.status, len(study)) == ("done", 20)


NOTEBOOK_CELL = """
import pandaflow as pf
from pandaflow import hpo

@pf.task
def parabola(x):
    import time
    time.sleep(0.05)
    return x * x

study = hpo.Study("parabola", store={store!r}, optimizer=hpo.random(seed=1))
study.optimize(parabola, hpo.Space(x=hpo.float(-1, 1)), n_trials=40, parallel=2,
               executor=pf.executors.Local(workers=2, processes=False))
"""


def test_a_notebook_cell_is_updated_in_place(store: str) -> None:
    pytest.importorskip("ipykernel")
    manager = pytest.importorskip("jupyter_client.manager")
    kernel, client = manager.start_new_kernel(kernel_name="python3", startup_timeout=60)
    messages: list[Any] = []
    try:
        for code in (NOTEBOOK_CELL.format(store=store), "study"):
            client.execute_interactive(code, timeout=60, output_hook=messages.append)
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    errors = [m["content"] for m in messages if m["msg_type"] == "error"]
    assert not errors, errors[0]["traceback"]
    views = [m for m in messages if "text/html" in m["content"].get("data", {})]
    kinds = [m["msg_type"] for m in views]
    assert kinds[0] == "display_data"
    assert kinds.count("display_data") == 1
    assert kinds.count("update_display_data") >= 2
    ids = {m["content"]["transient"]["display_id"] for m in views if "result" not in m["msg_type"]}
    assert len(ids) == 1
    results = [m["content"]["data"]["text/html"] for m in views if "result" in m["msg_type"]]
    # the first cell shows the study already
    assert results[0] == "" and "40 complete" in results[1]
    last = [m for m in views if m["msg_type"] == "update_display_data"][-1]
    assert "40 of 40 trials" in last["content"]["data"]["text/html"]
