"""Find the workflow that ``FILE.py:WORKFLOW`` names."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import WorkflowError

if TYPE_CHECKING:
    from pandaflow.workflows import WorkflowFunction


def load(file: str, name: str | None = None) -> WorkflowFunction:
    """Import ``file`` and return the workflow ``name`` that it defines.

    The file and the modules beside it are pickled by value, so that workers need neither the
    file nor its folder.

    Parameters
    ----------
    file : str
        Path of a Python file; its folder is put on ``sys.path``.
    name : str, optional
        May be left out when the file defines one workflow only.

    Raises
    ------
    WorkflowError
        No such file, it cannot be imported, or it has no such workflow.
    """
    path = Path(file)
    if not path.is_file():
        raise WorkflowError(f"no file {file!r}: give FILE.py:WORKFLOW")
    if path.suffix != ".py":
        raise WorkflowError(f"{file!r} is not a Python file: give FILE.py:WORKFLOW")
    module = import_file(path.resolve())
    return _pick(module, file, name)


def load_target(target: str) -> WorkflowFunction:
    """Return the workflow that ``FILE.py:WORKFLOW`` (or ``FILE.py``) names."""
    if target.endswith(".py"):
        return load(target)
    file, _, name = target.rpartition(":")
    if not file:
        raise WorkflowError(f"{target!r} names no workflow: give FILE.py:WORKFLOW")
    return load(file, name)


def is_target(text: str) -> bool:
    """Tell ``FILE.py:WORKFLOW`` from the id of a run."""
    return ".py" in text


def calling(what: str, call: Callable[[], Any]) -> Any:
    """Run the author's code; whatever it raises becomes one line that says where.

    Raises
    ------
    WorkflowError
        The code failed; the original error is its cause.
    """
    try:
        return call()
    except WorkflowError:
        raise
    # The author's code may raise anything, and may call sys.exit() when imported.
    except (Exception, SystemExit) as error:
        raise WorkflowError(
            f"{what} failed: {type(error).__name__}: {error}{_where(error)} "
            "(pandaflow --debug shows the traceback)"
        ) from error


def _where(error: BaseException) -> str:
    trace, last = error.__traceback__, None
    while trace is not None:
        if "pandaflow" not in Path(trace.tb_frame.f_code.co_filename).parts:
            last = trace
        trace = trace.tb_next
    if last is None:
        return ""
    return f" at {Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}"


def import_file(path: Path) -> ModuleType:
    """Import a Python file under its stem, its folder first on ``sys.path``.

    Parameters
    ----------
    path : Path
        Absolute.
    """
    import cloudpickle

    with _beside(path.parent) as beside:
        module = _execute(path)
    for each in (module, *beside):
        cloudpickle.register_pickle_by_value(each)
    return module


def _execute(path: Path) -> ModuleType:
    name = _free_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise WorkflowError(f"{path} cannot be imported as Python")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    loader = spec.loader
    try:
        calling(f"importing {path.name}", lambda: loader.exec_module(module))
    except WorkflowError:
        del sys.modules[name]
        raise
    return module


def _free_name(path: Path) -> str:
    """Return the stem, unless another module (``json.py``, ``test.py``) owns that name."""
    owner = sys.modules.get(path.stem)
    same = owner is not None and getattr(owner, "__file__", None) == str(path)
    taken = path.stem in sys.stdlib_module_names or (owner is not None and not same)
    return f"workflow_{path.stem}" if taken else path.stem


@contextmanager
def _beside(folder: Path) -> Iterator[list[ModuleType]]:
    """Put ``folder`` on the path; collect the modules imported from right there.

    They are found nowhere else, so a worker could not import them. A folder that was on the
    path before is left alone: whoever put it there answers for the workers too.
    """
    found: list[ModuleType] = []
    if str(folder) in sys.path:
        yield found
        return
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    yield found
    for name in sorted(set(sys.modules) - before):
        origin = getattr(sys.modules[name], "__file__", None)
        if "." not in name and origin and _lies_in(Path(origin), folder):
            found.append(sys.modules[name])


def _lies_in(origin: Path, folder: Path) -> bool:
    return origin.parent == folder or (
        origin.name == "__init__.py" and origin.parent.parent == folder
    )


def _pick(module: ModuleType, file: str, name: str | None) -> WorkflowFunction:
    from pandaflow.workflows import WorkflowFunction

    known = {
        key: value for key, value in vars(module).items() if isinstance(value, WorkflowFunction)
    }
    if name in known:
        return known[name]
    listed = ", ".join(sorted(known)) or "none"
    if name is None:
        if len(known) == 1:
            return next(iter(known.values()))
        raise WorkflowError(f"name the workflow: {file}:WORKFLOW; {file} defines {listed}")
    if hasattr(module, name):
        raise WorkflowError(
            f"{name!r} in {file} is no workflow: decorate the function with @pf.workflow "
            f"(workflows there: {listed})"
        )
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise WorkflowError(f"{file} defines no workflow {name!r} (it defines: {listed}){hint}")
