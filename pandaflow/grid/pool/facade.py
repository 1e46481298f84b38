"""The pool as one object: what drivers, pilots, people and the pool's own care ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.grid.messages import (
    Acquire,
    Acquired,
    Bundle,
    Outcomes,
    PilotCommand,
    PilotUpdate,
    Updated,
)
from pandaflow.grid.places import Demand, Queue, QueueBody
from pandaflow.grid.pool import care, demand, intake, leasing, logs, people, queues, reports
from pandaflow.grid.pool.classes import Classes
from pandaflow.grid.pool.session import reading, writing
from pandaflow.store.database import Database

#: States of a bundle in the pool, as :meth:`Pool.bundles` names them.
State = Literal["ready", "sent", "running", "ended", "lost", "cancelled"]


class Pool:
    """Bundles that wait for pilots, in a database; keeps nothing else.

    May be used from several threads and processes at once. Times are seconds since the epoch
    and given by the caller. What an actor may not see is :class:`NotThere` to them.

    Parameters
    ----------
    database : Database
        Its owner closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # Rows of pool_classes never change, so that what is known of them cannot be stale.
        self._classes = Classes()

    # --- drivers ------------------------------------------------------------------------

    def open_run(self, actor: Actor, run: str, now: float, owner: str = "") -> None:
        """Make a run known; nothing happens if it is and they may change it.

        Parameters
        ----------
        actor : Actor
        run : str
        now : float
        owner : str
            Subject of whoever it belongs to, if that is another than the actor.

        Raises
        ------
        Forbidden
            It is somebody else's, or the actor may not act for others.
        """
        with writing(self._database) as session:
            intake.open_run(session, actor, run, now, owner)

    def forget_run(self, actor: Actor, run: str, now: float) -> None:
        """Cancel a run's bundles and forget it, with its payloads, outcomes and logs.

        Raises
        ------
        NotThere, Forbidden
        """
        with writing(self._database) as session:
            no = intake.mark_gone(session, actor, run)
        # On its own: bundles are locked before runs everywhere, and none is added any more.
        care.forget(self._database, no)

    def runs(self, actor: Actor) -> list[dict[str, Any]]:
        """Return the runs that an actor may see, newest first.

        Returns
        -------
        list of dict
            ``run``, ``owner``, ``name``, ``created``, ``ready``, ``held`` (bundles) and
            ``unread`` (outcomes that its driver has not acknowledged).
        """
        with reading(self._database) as session:
            return people.runs(session, actor)

    def put_payload(self, actor: Actor, run: str, digest: str, data: bytes, now: float) -> None:
        """Keep a payload for a run's bundles; one that is there stays.

        Raises
        ------
        NotThere, Forbidden
        ValueError
            Its SHA-256 is another one, or it has more than ``PAYLOAD_BYTES``.
        """
        intake.check_payload(digest, data)
        with writing(self._database) as session:
            intake.put_payload(session, actor, run, digest, data)

    def payload(self, actor: Actor, run: str, digest: str) -> bytes:
        """Return a payload.

        Raises
        ------
        NotThere
        """
        with reading(self._database) as session:
            return intake.payload(session, actor, run, digest)

    def submit(
        self, actor: Actor, run: str, bundles: Sequence[Bundle], now: float
    ) -> dict[int, str]:
        """Put bundles into the pool; those that are there already stay as they are.

        Returns
        -------
        dict of int to str
            By number of the bundle: why it was refused.

        Raises
        ------
        NotThere, Forbidden
        """
        with writing(self._database) as session:
            return intake.submit(session, actor, run, bundles, now)

    def cancel(self, actor: Actor, run: str, bundles: Sequence[int] | None, now: float) -> int:
        """Cancel bundles that are not over, by number; None: all of the run. Return how many.

        Raises
        ------
        NotThere, Forbidden
        """
        return intake.cancel(self._database, actor, run, bundles, now)

    def outcomes(self, actor: Actor, run: str, after: int, limit: int, now: float) -> Outcomes:
        """Return what happened after outcome number ``after``, and forget what came before.

        Raises
        ------
        NotThere, Forbidden
        """
        return intake.outcomes(self._database, actor, run, after, limit, now)

    # --- pilots -------------------------------------------------------------------------

    def acquire(
        self, asked: Sequence[tuple[Actor, Acquire]], now: float
    ) -> list[Acquired | Forbidden]:
        """Give bundles to pilots, each to one, in one transaction; answers in order of asking."""
        with writing(self._database) as session:
            return leasing.acquire(session, self._classes, asked, now)

    def update(self, told: Sequence[tuple[Actor, PilotUpdate]], now: float) -> list[Updated]:
        """Take the reports of pilots, in one transaction; answers in order of telling."""
        with writing(self._database) as session:
            return reports.update(session, self._classes, told, now)

    def put_log(self, actor: Actor, id: int, lease: str, text: str, now: float) -> None:
        """Keep the log of a bundle, which its pilot sends; of a long one the end.

        Raises
        ------
        Forbidden
            The lease is not the one of the bundle.
        NotThere
        """
        with writing(self._database) as session:
            logs.put(session, self._classes, actor, (id, lease, text), now)

    # --- care ---------------------------------------------------------------------------

    def care(self, now: float) -> dict[str, int]:
        """Take back what pilots have lost, try held queues again, and tidy up.

        To be called every few seconds, by any number of servers.

        Returns
        -------
        dict of str to int
            How many bundles were ``lost`` and ``purged``, queues are ``probing`` now or again,
            and ``pilots``, ``classes`` and ``runs`` were forgotten.
        """
        return care.care(self._database, now)

    # --- queues -------------------------------------------------------------------------

    def queues(self, actor: Actor, now: float) -> list[Queue]:
        """Return the queues of an actor's VO, by name."""
        with reading(self._database) as session:
            return queues.listed(session, actor, now)

    def queue(self, actor: Actor, name: str, now: float) -> Queue:
        """Return a queue.

        Raises
        ------
        NotThere
        """
        with reading(self._database) as session:
            return queues.one(session, actor, name, now)

    def demand(self, actor: Actor, name: str, now: float) -> Demand:
        """Return what a queue is wanted for: bundles of the actor's VO by class.

        Raises
        ------
        NotThere, Forbidden
        """
        with reading(self._database) as session:
            return demand.demand(session, self._classes, actor, name, now)

    def put_queue(self, actor: Actor, name: str, body: QueueBody, now: float) -> Queue:
        """Make a queue, or change what it is; its state stays.

        Raises
        ------
        Forbidden
        WorkflowError
            Its site is none.
        """
        with writing(self._database) as session:
            queues.put(session, actor, name, body, now)
        return self.queue(actor, name, now)

    def delete_queue(self, actor: Actor, name: str, now: float) -> None:
        """Delete a queue; what runs there goes on.

        Raises
        ------
        NotThere, Forbidden
        """
        with writing(self._database) as session:
            queues.delete(session, actor, name)

    def close_queue(self, actor: Actor, name: str, now: float, reason: str = "") -> Queue:
        """Give out no more bundles at a queue; what runs there goes on.

        Raises
        ------
        NotThere, Forbidden
        """
        with writing(self._database) as session:
            queues.close(session, actor, name, reason, now)
        return self.queue(actor, name, now)

    def open_queue(self, actor: Actor, name: str, now: float) -> Queue:
        """Open a queue, also one that is held, and forget how bundles ended there.

        Raises
        ------
        NotThere, Forbidden
        """
        with writing(self._database) as session:
            queues.open_again(session, actor, name, now)
        return self.queue(actor, name, now)

    # --- people -------------------------------------------------------------------------

    def pilots(self, actor: Actor, now: float, queue: str = "") -> list[dict[str, Any]]:
        """Return the pilots of an actor's VO, of one queue or of all, those heard of last first.

        Returns
        -------
        list of dict
            ``pilot``, ``queue``, ``host``, ``since``, ``heard``, ``ago`` (seconds since then),
            ``free`` (cores after its last question), ``command``, ``running`` (bundles), ``alive``
            (heard of in time).
        """
        with reading(self._database) as session:
            return people.pilots(session, actor, now, queue)

    def command_pilot(self, actor: Actor, name: str, command: PilotCommand) -> None:
        """Tell a pilot to drain or to stop, with the next answer that it gets.

        Raises
        ------
        NotThere, Forbidden
        """
        with writing(self._database) as session:
            people.command(session, actor, name, command)

    def ask_tail(self, actor: Actor, run: str, bundle: int) -> bool:
        """Ask for the end of a bundle's log; False: no pilot has it now.

        Raises
        ------
        NotThere
        """
        with writing(self._database) as session:
            return logs.ask(session, actor, run, bundle)

    def log(self, actor: Actor, run: str, bundle: int) -> str:
        """Return what there is of the log of a bundle's last attempt.

        Raises
        ------
        NotThere
        """
        with reading(self._database) as session:
            return logs.text(session, actor, run, bundle)

    def bundles(
        self, actor: Actor, run: str, state: State | None = None, limit: int = 1000
    ) -> list[dict[str, Any]]:
        """Return bundles of a run that are in the pool, by number.

        Those that are over stay for some minutes.

        Returns
        -------
        list of dict
            ``id``, ``bundle``, ``attempt``, ``state``, ``priority``, ``queue``, ``pilot``,
            ``host``, ``heard``, ``why``, ``unread`` (its driver has not acknowledged the latest
            that happened to it).

        Raises
        ------
        NotThere
        """
        with reading(self._database) as session:
            return people.bundles(session, actor, run, state, limit)

    def load(self) -> dict[str, int]:
        """Return counts over all VOs, for metrics.

        Returns
        -------
        dict of str to int
            ``runs``, ``ready`` and ``held`` bundles, ``unread`` outcomes, ``pilots``, and
            ``queues_open``, ``queues_held``, ``queues_probing``, ``queues_closed``.
        """
        with reading(self._database) as session:
            return people.load(session)
