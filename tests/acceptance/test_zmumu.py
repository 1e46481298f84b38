"""The example analysis on toys with known truth and on real CMS data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import pandaflow as pf

np = pytest.importorskip("numpy")
ak = pytest.importorskip("awkward")
uproot = pytest.importorskip("uproot")
pytest.importorskip("hist")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DATA = ROOT.parent / "shared" / "data" / "uproot-Zmumu.root"
EDGES = np.linspace(60, 120, 61)

real_data = pytest.mark.skipif(not DATA.exists(), reason="the CMS sample is not here")


@pytest.fixture(scope="module")
def examples() -> Iterator[SimpleNamespace]:
    """The example scripts as modules; they are no package."""
    names = ("toy", "zmumu", "demo")
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield SimpleNamespace(**{name: import_module(name) for name in names})
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def sample(examples: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    examples.toy.write_sample(folder, files=3, events=8000, seed=11)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory: the default store lies in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compute(zmumu: ModuleType, sample: Any, out: Path) -> dict[str, Any]:
    """Run the workflow durably in this process; return its result."""
    workflow = zmumu.zmumu(sample, out=str(out))
    run = workflow.run(executor=pf.executors.Local(workers=2, processes=False), progress=False)
    return run.result()


def pull(fit: dict[str, Any], truth: dict[str, Any], name: str) -> float:
    return (fit[name]["value"] - truth[name]) / fit[name]["error"]


# --- the toy ----------------------------------------------------------------------------


def test_toy_kinematics_are_consistent(sample: Path):
    tree = uproot.open(sample / "toy_001.root")["events"].arrays(library="np")
    for k in (1, 2):
        e, px, py, pz = (tree[f"{name}{k}"] for name in ("E", "px", "py", "pz"))
        pt, eta, phi = (tree[f"{name}{k}"] for name in ("pt", "eta", "phi"))
        # differences of large squares: the mass of 0.1 GeV is what is left of 50 GeV
        assert np.allclose(e**2 - px**2 - py**2 - pz**2, 0.1056583755**2, atol=1e-6)
        assert np.allclose([pt * np.cos(phi), pt * np.sin(phi)], [px, py])
        assert np.allclose(pt * np.sinh(eta), pz)
        assert set(tree[f"Q{k}"]) == {-1, 1}


def test_toy_momentum_balances_before_it_is_measured(examples: SimpleNamespace):
    rng = np.random.default_rng(3)
    mass = examples.toy.breit_wigner_masses(rng, 5000, examples.toy.Truth())
    first, second = examples.toy.decay(rng, mass)
    assert np.allclose(examples.toy.pair_mass(first, second), mass)


def test_toy_is_reproducible(examples: SimpleNamespace, tmp_path: Path):
    truths = [examples.toy.write_sample(tmp_path / str(k), 2, 500, seed=5) for k in (1, 2)]
    other = examples.toy.write_sample(tmp_path / "3", 2, 500, seed=6)
    masses = [uproot.open(tmp_path / f"{k}/toy_002.root")["events/M"].array() for k in (1, 2, 3)]
    assert truths[0] == truths[1] != other
    assert ak.array_equal(masses[0], masses[1])
    assert not ak.array_equal(masses[0], masses[2])


def test_toy_masses_follow_their_distributions(examples: SimpleNamespace):
    toy, rng = examples.toy, np.random.default_rng(4)
    truth, (low, high) = toy.Truth(), toy.MASSES
    s = toy.breit_wigner_masses(rng, 200_000, truth) ** 2
    # half of an untruncated peak in s lies within m_Z * width; a tail of 3 % is cut off
    inside = np.mean(abs(s - truth.m_Z**2) < truth.m_Z * truth.width)
    assert inside == pytest.approx(0.51, abs=0.01)
    background = toy.exponential_masses(rng, 200_000, truth)
    assert (background.min(), background.max()) == pytest.approx((low, high), abs=0.1)
    expected = np.exp(-truth.slope * 20)
    first, second = (np.sum((background > m) & (background < m + 10)) for m in (60, 80))
    assert second / first == pytest.approx(expected, rel=0.03)


# --- the fit ----------------------------------------------------------------------------


def test_pulls_of_the_fit_look_like_unit_gaussians(examples: SimpleNamespace):
    toy, truth, pulls = examples.toy, examples.toy.Truth(), []
    known = {"m_Z": truth.m_Z, "width": truth.width, "sigma": truth.sigma, "slope": truth.slope}
    for seed in range(25):
        rng = np.random.default_rng(seed)
        background = toy.exponential_masses(rng, 2000, truth)
        mass = np.concatenate([background, toy.breit_wigner_masses(rng, 18_000, truth)])
        mass *= np.exp(rng.normal(0, truth.resolution / np.sqrt(2), len(mass)))
        fit = examples.zmumu.fit_peak(np.histogram(mass, EDGES)[0], EDGES)
        assert fit["converged"]
        pulls.append([pull(fit, known, name) for name in known])
    assert np.abs(pulls).max() < 4
    # four standard errors of the mean and of the root mean square of 25
    assert np.abs(np.mean(pulls, axis=0)).max() < 0.8
    assert np.sqrt(np.mean(np.square(pulls), axis=0)) == pytest.approx(np.ones(4), abs=0.57)


def test_the_fit_sees_a_shifted_peak(examples: SimpleNamespace):
    toy, rng = examples.toy, np.random.default_rng(1)
    mass = toy.breit_wigner_masses(rng, 20_000, toy.Truth(m_Z=90.0))
    fit = examples.zmumu.fit_peak(np.histogram(mass, EDGES)[0], EDGES)
    assert abs(fit["m_Z"]["value"] - 90.0) < 4 * fit["m_Z"]["error"] < 0.2


def test_too_few_events_are_refused(examples: SimpleNamespace):
    with pytest.raises(ValueError, match="too few"):
        examples.zmumu.fit_peak(np.zeros(60), EDGES)


def test_shapes_are_normalised_and_the_peak_is_where_it_should_be(examples: SimpleNamespace):
    zmumu = examples.zmumu
    fine = np.linspace(60, 120, 6001)
    peak = zmumu.peak_shape(fine, 91.1876, 2.4952, 1.3)
    assert peak.sum() == pytest.approx(1)
    assert fine[np.argmax(peak)] == pytest.approx(91.1876, abs=0.1)
    for slope in (0.03, 0.0, -0.01):
        shape = zmumu.background_shape(EDGES, slope)
        assert shape.sum() == pytest.approx(1)
        assert shape[0] / shape[-1] == pytest.approx(np.exp(59 * slope))


def test_without_resolution_the_peak_is_a_breit_wigner(examples: SimpleNamespace):
    edges = np.linspace(85, 97, 25)
    narrow = examples.zmumu.peak_shape(edges, 91.1876, 2.4952, 0.05)
    exact = np.diff(np.arctan((edges**2 - 91.1876**2) / (91.1876 * 2.4952)))
    assert narrow == pytest.approx(exact / exact.sum(), rel=0.01)


# --- the workflow -----------------------------------------------------------------------


def test_the_workflow_recovers_the_truth(examples: SimpleNamespace, sample: Path, here: Path):
    truth = json.loads((sample / "truth.json").read_text())
    result = compute(examples.zmumu, str(sample / "*.root"), here / "plots")
    fit = result["fit"]
    for name in ("m_Z", "width", "sigma", "n_signal", "n_background", "slope"):
        assert abs(pull(fit, truth, name)) < 4, name
    cutflow = fit["cutflow"]
    assert cutflow["read"] == truth["pairs"] == 24_000
    assert cutflow["opposite charge"] == truth["pairs"] - truth["same_sign"]
    assert cutflow["pt > 20 GeV"] == truth["pairs"] - truth["same_sign"] - truth["soft"]
    assert fit["n_signal"]["value"] + fit["n_background"]["value"] == pytest.approx(
        truth["n_signal"] + truth["n_background"], rel=1e-3
    )
    assert Path(result["plot"]).read_bytes().startswith(b"\x89PNG")
    assert Path(result["plot"]) == here / "plots" / "zmumu.png"


def test_a_dataset_does_as_well_as_a_glob(examples: SimpleNamespace, sample: Path, here: Path):
    dataset = pf.files([sample / "toy_002.root"])
    result = compute(examples.zmumu, dataset, here)
    assert result["fit"]["cutflow"]["read"] == 8000


def demo(here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_demo_runs_from_its_command_line(here: Path):
    done = demo(here, "--files", "2", "--events", "4000", "--out", "out")
    assert done.returncode == 0, done.stderr
    for name in ("zmumu.png", "timeline.svg", "graph.svg", "toy/truth.json"):
        assert (here / "out" / name).stat().st_size > 0
    assert "m_Z" in done.stdout and "out/zmumu.png" in done.stdout


def test_the_demo_fails_when_the_truth_is_not_recovered(
    examples: SimpleNamespace, here: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def write_wrong_truth(*arguments: Any) -> dict[str, Any]:
        return {**examples.toy.write_sample(*arguments), "m_Z": 85.0}

    monkeypatch.setattr(examples.demo, "write_sample", write_wrong_truth)
    assert examples.demo.main(["--files", "1", "--events", "3000"]) == 1
    assert "does not recover the truth: m_Z" in capsys.readouterr().out


# --- real data --------------------------------------------------------------------------


@real_data
def test_masses_are_those_of_the_sample(examples: SimpleNamespace):
    pairs = uproot.open(DATA)["events"].arrays()
    assert np.allclose(examples.zmumu.invariant_mass(pairs), pairs.M, atol=1e-6)


@real_data
def test_each_event_counts_once_and_its_best_pair_is_taken(examples: SimpleNamespace):
    pairs = uproot.open(DATA)["events"].arrays()
    kept = pairs[examples.zmumu.one_per_event(pairs)]
    events = set(zip(pairs.Run.tolist(), pairs.Event.tolist(), strict=True))
    assert len(kept) == len(events)
    assert set(zip(kept.Run.tolist(), kept.Event.tolist(), strict=True)) == events
    best = {
        (run, event)
        for run, event, kind in zip(
            pairs.Run.tolist(), pairs.Event.tolist(), pairs.Type.tolist(), strict=True
        )
        if kind == "GG"
    }
    assert int(ak.sum(kept.Type == "GG")) == len(best)


@real_data
def test_the_command_line_measures_the_z_in_real_data(here: Path):
    command = [sys.executable, "-m", "pandaflow.cli", "run", f"{EXAMPLES}/zmumu.py:zmumu"]
    done = subprocess.run(
        [*command, "--sample", str(DATA), "--json"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fit = json.loads(done.stdout)["result"]["fit"]
    assert fit["cutflow"]["read"] == 2304
    assert fit["cutflow"]["one pair per event"] == 500
    assert fit["converged"]
    assert abs(fit["m_Z"]["value"] - 91.19) < 1.0
    assert fit["m_Z"]["error"] < 0.3
    assert 0.5 < fit["sigma"]["value"] < 3
    assert 400 < fit["n_signal"]["value"] < 500
    assert (here / "demo-output" / "zmumu.png").exists()
