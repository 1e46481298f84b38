"""Write toy Z -> mu mu samples whose truth is known.

    python examples/toy.py --out DIR --files 8 --events 20000 --seed 1

The files have the tree and branches of the CMS open data sample "Zmumu" that ``zmumu.py``
reads. ``truth.json`` beside them says what is in them. Needs ``pip install 'pandaflow[hep]'``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

MUON_MASS = 0.1056583755
#: GeV: wider than the window of the analysis by six times the resolution.
MASSES = (52.0, 132.0)


@dataclass(frozen=True)
class Truth:
    """What is generated; GeV.

    ``resolution`` is the relative error of a muon's momentum, Gaussian in ln p: with ``m_Z``
    it makes ``sigma`` = m_Z * resolution / sqrt(2), the resolution of the mass at the peak.
    """

    m_Z: float = 91.1876  # noqa: N815 (the name that physicists know)
    width: float = 2.4952
    resolution: float = 0.02
    slope: float = 0.02
    background: float = 0.10
    same_sign: float = 0.05
    soft: float = 0.05

    @property
    def sigma(self) -> float:
        """Mass resolution at the peak."""
        return self.m_Z * self.resolution / np.sqrt(2)


def breit_wigner_masses(rng, n, truth):
    """Draw masses: s = m^2 follows 1 / ((s - m_Z^2)^2 + m_Z^2 width^2), cut to ``MASSES``."""
    scale = truth.m_Z * truth.width
    edges = np.arctan((np.array(MASSES) ** 2 - truth.m_Z**2) / scale)
    return np.sqrt(truth.m_Z**2 + scale * np.tan(rng.uniform(*edges, n)))


def exponential_masses(rng, n, truth):
    """Draw masses that follow exp(-slope m), cut to ``MASSES``."""
    ends = np.exp(-truth.slope * np.array(MASSES))
    return -np.log(rng.uniform(ends[1], ends[0], n)) / truth.slope


def decay(rng, mass):
    """Let pairs of these masses decay isotropically and in flight.

    Returns two arrays of four-momenta (E, px, py, pz), shape (4, n).
    """
    n = len(mass)
    cos_theta, phi = rng.uniform(-1, 1, n), rng.uniform(-np.pi, np.pi, n)
    momentum = np.sqrt(mass**2 / 4 - MUON_MASS**2)
    sin_theta = np.sqrt(1 - cos_theta**2)
    direction = np.array([sin_theta * np.cos(phi), sin_theta * np.sin(phi), cos_theta])
    pt, angle = rng.exponential(8.0, n), rng.uniform(-np.pi, np.pi, n)
    rapidity = rng.normal(0.0, 0.9, n)
    transverse = np.sqrt(mass**2 + pt**2)
    pair = np.array([pt * np.cos(angle), pt * np.sin(angle), transverse * np.sinh(rapidity)])
    return tuple(boost(mass, pair, sign * momentum * direction) for sign in (1, -1))


def boost(mass, pair, momentum):
    """Boost a muon's ``momentum`` from the rest frame of its pair, shape (3, n) each."""
    energy = np.sqrt(MUON_MASS**2 + (momentum**2).sum(axis=0))
    pair_energy = np.sqrt(mass**2 + (pair**2).sum(axis=0))
    along = (pair * momentum).sum(axis=0) / mass
    moved = momentum + pair * (along / (pair_energy + mass) + energy / mass)
    return np.concatenate([[(pair_energy * energy / mass) + along], moved])


def transverse(muon):
    """Transverse momentum of four-momenta, GeV."""
    return np.hypot(muon[1], muon[2])


def pseudorapidity(muon):
    """Pseudorapidity of four-momenta."""
    return np.arcsinh(muon[3] / transverse(muon))


def accepted(first, second, soft):
    """Whether both muons are well inside the cuts of the analysis; ``soft``: one is well below."""
    least = np.minimum(transverse(first), transverse(second))
    inside = np.maximum(abs(pseudorapidity(first)), abs(pseudorapidity(second))) < 2.35
    return np.where(soft, (least > 3) & (least < 17), inside & (least > 23))


def decay_into(rng, mass, soft):
    """Let pairs decay again and again until their muons are where they are wanted.

    Each pair keeps its mass, so the acceptance does not bend the spectrum.
    """
    first, second = decay(rng, mass)
    for _ in range(10_000):
        again = np.flatnonzero(~accepted(first, second, soft))
        if not len(again):
            return first, second
        first[:, again], second[:, again] = decay(rng, mass[again])
    raise RuntimeError(f"{len(again)} decays do not reach the acceptance")


def smear(rng, muon, truth):
    """Measure momenta: the direction exactly, the size with a Gaussian error in ln p."""
    momentum = muon[1:] * np.exp(rng.normal(0.0, truth.resolution, muon.shape[1]))
    return np.concatenate([[np.sqrt(MUON_MASS**2 + (momentum**2).sum(axis=0))], momentum])


def branches(muon, charge, number):
    """Name the quantities of one muon as the CMS sample does."""
    names = {"E": muon[0], "px": muon[1], "py": muon[2], "pz": muon[3]}
    names |= {"pt": transverse(muon), "eta": pseudorapidity(muon)}
    names |= {"phi": np.arctan2(muon[2], muon[1]), "Q": charge.astype(np.int32)}
    return {f"{name}{number}": values for name, values in names.items()}


def pair_mass(first, second):
    """Invariant mass of pairs of four-momenta, GeV."""
    total = first + second
    return np.sqrt(total[0] ** 2 - (total[1:] ** 2).sum(axis=0))


def generate(rng, n, truth, run=1):
    """Generate ``n`` pairs.

    Returns the branches, and how many pairs of each kind the analysis must find in its window.
    """
    is_background = rng.random(n) < truth.background
    mass = np.where(
        is_background, exponential_masses(rng, n, truth), breit_wigner_masses(rng, n, truth)
    )
    kind = rng.random(n)
    same_sign = kind < truth.same_sign
    soft = ~same_sign & (kind < truth.same_sign + truth.soft)
    first, second = (smear(rng, muon, truth) for muon in decay_into(rng, mass, soft))
    charge = rng.choice([-1, 1], n)
    measured = pair_mass(first, second)
    tree = {"Run": np.full(n, run, np.int32), "Event": np.arange(1, n + 1, dtype=np.int32)}
    tree |= branches(first, charge, 1)
    tree |= branches(second, np.where(same_sign, charge, -charge), 2)
    found = (measured > 60) & (measured < 120) & ~same_sign & ~soft
    counts = {
        "n_signal": int(np.sum(found & ~is_background)),
        "n_background": int(np.sum(found & is_background)),
        "same_sign": int(np.sum(same_sign)),
        "soft": int(np.sum(soft)),
        "pairs": n,
    }
    return {**tree, "M": measured}, counts


def write_sample(out, files=8, events=20_000, seed=1, truth=None):
    """Write ``files`` files of ``events`` pairs each into ``out``, and ``truth.json``.

    Returns the truth that is written: the parameters, and the counts over all files.
    """
    import uproot

    truth, folder = truth or Truth(), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("toy_*.root"):  # an earlier sample may have had more files
        stale.unlink()
    totals = {}
    for number, child in enumerate(np.random.SeedSequence(seed).spawn(files), start=1):
        tree, counts = generate(np.random.default_rng(child), events, truth, run=number)
        with uproot.recreate(folder / f"toy_{number:03d}.root") as file:
            file.mktree("events", {name: values.dtype for name, values in tree.items()})
            file["events"].extend(tree)
        totals = {name: totals.get(name, 0) + count for name, count in counts.items()}
    known = {**asdict(truth), "sigma": truth.sigma, "seed": seed, **totals}
    (folder / "truth.json").write_text(json.dumps(known, indent=2) + "\n")
    return known


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="demo-output/toy", help="folder to write to")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--events", type=int, default=20_000, help="pairs a file")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    truth = write_sample(chosen.out, chosen.files, chosen.events, chosen.seed)
    print(f"{chosen.files} files of {chosen.events:,} pairs in {chosen.out}")
    print(json.dumps(truth, indent=2))


if __name__ == "__main__":
    main()
