"""What a run would submit to a batch system, without doing so: no command, no file, no clock."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pandaflow.core.brokerage import Ranking, cores_on_node, rank
from pandaflow.core.bundle import BundleSpec
from pandaflow.core.chunking import Fixed
from pandaflow.core.model import Resources, TaskSpec
from pandaflow.executors.batch import arrays
from pandaflow.executors.batch.allocations import pilot_body, pilot_request
from pandaflow.executors.batch.model import BatchRequest, plain_name
from pandaflow.executors.batch.script import batch_files
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.batch.slots import Slot, slot_of

#: Stands for the run's id, which a run gets when it begins.
RUN = "RUN"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A task that would run there.

    Attributes
    ----------
    task : TaskSpec
    jobs : int or None
        None: known only when the workflow runs.
    """

    task: TaskSpec
    jobs: int | None

    @property
    def resources(self) -> Resources:
        """What one of its jobs asks for."""
        return self.task.resources


@dataclass(frozen=True, slots=True)
class Draft:
    """A batch job that a run would submit.

    Attributes
    ----------
    site : str
    tasks : tuple of str
        Whose jobs it would run.
    note : str
        How many of them, for people.
    command : str
        What would submit it.
    files : mapping of str to str
        Path and text: the script, and a description beside it for systems that want one.
    """

    site: str
    tasks: tuple[str, ...]
    note: str
    command: str
    files: Mapping[str, str]

    @property
    def script(self) -> str:
        """Text of the script; of the script and its description where there are both."""
        return "\n".join(self.files.values())


def broker(settings: BatchSettings, resources: Resources) -> Ranking:
    """Say which sites may run a job, best first, and why the others cannot."""
    return rank(resources, [place.site for place in settings.places().values()])


def drafts(settings: BatchSettings, wanted: Sequence[Wanted], root: str, cwd: str) -> list[Draft]:
    """Return what would be submitted for some tasks.

    Parameters
    ----------
    settings : BatchSettings
    wanted : sequence of Wanted
        Tasks that fit nowhere are left out.
    root : str
        Folder of the results of all runs.
    cwd : str
        Folder in which the workflow would be started.

    Returns
    -------
    list of Draft
        Pilots: one for each site and shape of slots, in every site where a task may run.
        Batch mode: one for each task, at the site that suits it best.
    """
    if settings.mode == "batch":
        return [
            draft
            for one in wanted
            for draft in _array(settings, one, Path(root, RUN, "batch"), cwd)
        ]
    pilots = [
        (place, slot, tasks)
        for name, place in settings.places().items()
        for slot, tasks in _shapes(place, _fitting(settings, wanted, name)).items()
    ]
    folder = Path(root, RUN, "pilots")
    return [_pilot(*each, folder, number) for number, each in enumerate(pilots, start=1)]


def _fitting(settings: BatchSettings, wanted: Sequence[Wanted], site: str) -> list[Wanted]:
    return [
        one
        for one in wanted
        if any(each.name == site for each, _ in broker(settings, one.resources).sites)
    ]


def _draft(
    place: BatchSettings,
    tasks: Sequence[Wanted],
    note: str,
    path: Path,
    request: BatchRequest,
    body: str,
) -> Draft:
    files = batch_files(place.backend, str(path), request, body, place.prologue)
    command = shlex.join(place.backend.submit(str(path), request))
    return Draft(place.name, tuple(one.task.name for one in tasks), note, command, files)


# --- pilots -----------------------------------------------------------------------------


def _shapes(place: BatchSettings, wanted: Sequence[Wanted]) -> dict[Slot, list[Wanted]]:
    """Return the tasks of a site by the slots that their jobs need."""
    shapes: dict[Slot, list[Wanted]] = {}
    for one in wanted:
        slot = slot_of(one.resources, place.site)
        if slot is not None:
            shapes.setdefault(slot, []).append(one)
    return shapes


def _pilot(
    place: BatchSettings, slot: Slot, tasks: Sequence[Wanted], folder: Path, number: int
) -> Draft:
    request = pilot_request(place, slot, plain_name(f"pf-{RUN}"), str(folder))
    body = pilot_body(place, folder / "contact.json", slot)
    at_once = f"{slot.count} {'job' if slot.count == 1 else 'jobs'} at once"
    many = "1 pilot" if place.max_nodes == 1 else f"up to {place.max_nodes} pilots"
    path = folder / f"pilot-{number}.sh"
    return _draft(place, tasks, f"{many} of {at_once}", path, request, body)


# --- one batch job per bundle -----------------------------------------------------------


def _array(settings: BatchSettings, wanted: Wanted, folder: Path, cwd: str) -> list[Draft]:
    sites = broker(settings, wanted.resources).sites
    if not sites:
        return []
    place = settings.places()[sites[0][0].name]
    folder /= plain_name(wanted.task.name)
    n = _elements(place, wanted)
    specs = [[_bundle(wanted.task, job)] for job in range(n)]
    request = arrays.array_request(place, specs, folder=folder, workdir=cwd)
    note = _said(wanted.jobs, n)
    return [_draft(place, [wanted], note, folder / "script", request, arrays.body(place, folder))]


def _elements(place: BatchSettings, wanted: Wanted) -> int:
    """Return the elements of the first array: as many jobs as there are and may run at once."""
    room = place.max_nodes * place.cores
    room //= cores_on_node(wanted.resources) * wanted.resources.nodes
    return max(1, min(1 if wanted.jobs is None else wanted.jobs, room, arrays.MOST_ELEMENTS))


def _said(jobs: int | None, elements: int) -> str:
    if jobs is None:
        return "its number of jobs is known only when the workflow runs"
    one = "1 batch job" if elements == 1 else f"an array of {elements}"
    more = "; more as these end" if jobs > elements else ""
    return f"{jobs:,} {'job' if jobs == 1 else 'jobs'}: {one}{more}"


def _bundle(task: TaskSpec, job: int) -> BundleSpec:
    """Return a bundle of one job as far as its batch job depends on it."""
    return BundleSpec(
        run=RUN,
        bundle=job,
        task=task.id,
        name=task.name,
        token=task.token,
        kind=task.kind,
        jobs=range(job, job + 1),
        attempt=1,
        lists=task.lists,
        inputs=(),
        chunks=Fixed(1),
        resources=task.resources,
    )
