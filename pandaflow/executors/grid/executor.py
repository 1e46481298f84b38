"""The executor on the grid, as users make it: ``Grid("https://pool.example.org:8443")``."""

from __future__ import annotations

from typing import Any

from pandaflow.executors.grid.settings import make_settings
from pandaflow.ports import Report, Session


class Grid:
    """Runs jobs on the sites whose pilots pull from a server's pool.

    Functions need PandaFlow on the worker nodes, of this version and under the same minor version
    of Python; commands need nothing but the pilot.

    Parameters
    ----------
    server : str
        URL of the server.
    queue : str, optional
        The only queue to use; default: any that may run a job.
    data : str, optional
        Folder or fsspec URL that driver and pilots reach, for what is too large for the server.
    **settings
        ``near``, ``tags``, ``requirements``, ``slots``, ``credentials``, ``vo``, ``ca``, ``wait``:
        see :class:`~pandaflow.executors.grid.settings.GridSettings`.

    Raises
    ------
    WorkflowError
        Names the setting.

    Examples
    --------
    >>> import pandaflow as pf
    >>> pf.executors.Grid("https://pool.example.org:8443", queue="CERN", data="s3://scratch/me")
    Grid('https://pool.example.org:8443', queue='CERN')
    """

    #: Tasks may name a container: pilots have runtimes.
    containers = True

    def __init__(
        self,
        server: str,
        *,
        queue: str | None = None,
        data: str | None = None,
        **settings: Any,
    ) -> None:
        self.settings = make_settings(server, {"queue": queue, "data": data, **settings})

    def open(self, run_id: str, results: str, report: Report) -> Session:
        """Begin to work for a run.

        Raises
        ------
        SiteError
            The server cannot be reached, or does not let us in; says what to do.
        """
        from pandaflow.executors.grid.session import GridSession

        return GridSession(self.settings, run_id, results, report)

    def __repr__(self) -> str:
        queue = f", queue={self.settings.queue!r}" if self.settings.queue else ""
        return f"Grid({self.settings.server!r}{queue})"
