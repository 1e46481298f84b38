"""Conformance kit for submitters of pilots: subclass it, give it ``make`` and an ``order``.

Examples
--------
>>> class TestMySystem(SubmitterTests):
...     @pytest.fixture
...     def make(self, my_system, tmp_path):
...         return lambda label: MySettings().open(label, tmp_path / label)

Pilots are small shell scripts: the kit looks at how they are begun and ended, not at what they do.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pandaflow.core.errors import SiteError
from pandaflow.harvester.submitter import Order, PilotState, Shape, Submitter

__all__ = ["LASTING", "SubmitterTests", "pilot_program"]

#: Seconds to wait for a system to do something.
PATIENCE = 60.0
#: What a pilot does that stays until it is ended, and leaves nothing then.
LASTING = "n=0; while [ $n -lt 1500 ]; do sleep 0.2; n=$((n + 1)); done"

Make = Callable[[str], Submitter]


def pilot_program(script: str) -> tuple[str, ...]:
    """Return the words of a pilot that is a shell script; its options are ``$1``, ``$2``, ..."""
    return ("/bin/sh", "-c", script, "pilot")


class _SubmitterTests:
    """What every submitter must do.

    Attributes
    ----------
    tells_codes : bool
        Whether the system tells exit codes.
    shares_files : bool
        Whether pilots see the files of this machine.
    unknown : str
        An id as the system writes them, of a pilot that never was.
    """

    tells_codes = True
    shares_files = True
    unknown = "99999"

    @pytest.fixture
    def make(self) -> Make:
        """Return a function that opens a submitter for a label; the same folder for the same."""
        raise NotImplementedError

    @pytest.fixture
    def silent(self) -> Submitter | None:
        """A submitter whose system does not answer; None: there is no such thing."""
        return None

    @pytest.fixture
    def label(self) -> str:
        """A label that no other test uses."""
        return f"pf-kit-{secrets.token_hex(4)}"

    @pytest.fixture
    def order(self, label: str, tmp_path: Path) -> Order:
        """An order of pilots that last."""
        token = tmp_path / "token"
        token.write_text("a-secret-of-the-pilots\n")
        return Order(
            server="http://127.0.0.1:1",
            queue="a queue",
            label=label,
            shape=Shape(cores=1, memory=100_000_000, walltime=600.0),
            program=pilot_program(LASTING),
            token_file=str(token),
        )

    @pytest.fixture
    def submitter(self, make: Make, label: str) -> Iterator[Submitter]:
        """A submitter; what it has begun is ended after the test."""
        opened = make(label)
        yield opened
        self.wait(lambda: not self._cancelled(opened))

    @staticmethod
    def _cancelled(submitter: Submitter) -> list[str]:
        """Cancel what is left, again as long as there is something; return it."""
        left = list(submitter.found())
        if left:
            submitter.cancel(left)
        return left

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "nothing happens"
            time.sleep(0.1)

    def ended(self, submitter: Submitter, id: str) -> PilotState:
        """Wait until a pilot is gone; return its state."""
        self.wait(lambda: submitter.states([id])[id].phase == "gone")
        return submitter.states([id])[id]

    def begin(self, submitter: Submitter, order: Order, count: int = 1) -> Mapping[str, str]:
        """Begin pilots; return their ids by name."""
        names = [f"{order.label}-{number:010x}" for number in range(count)]
        begun = submitter.submit(order, names)
        assert list(begun) == names
        return begun

    # --- tests --------------------------------------------------------------------------

    def test_pilots_are_begun_and_found_by_name(self, submitter: Submitter, order: Order) -> None:
        begun = self.begin(submitter, order, 3)
        assert len(set(begun.values())) == 3
        assert submitter.found() == {id: name for name, id in begun.items()}
        ids = list(begun.values())
        self.wait(lambda: {s.phase for s in submitter.states(ids).values()} == {"running"})
        assert submitter.found() == {id: name for name, id in begun.items()}

    def test_another_object_knows_them_too(
        self, make: Make, submitter: Submitter, order: Order
    ) -> None:
        begun = self.begin(submitter, order)
        (id,) = begun.values()
        heir = make(order.label)
        assert heir.found() == {id: name for name, id in begun.items()}
        assert heir.states([id])[id].phase in ("waiting", "running")
        heir.cancel([id])
        assert self.ended(submitter, id).phase == "gone"

    def test_labels_keep_harvesters_apart(
        self, make: Make, submitter: Submitter, order: Order
    ) -> None:
        self.begin(submitter, order)
        assert make(f"{order.label}9").found() == {}
        assert make(order.label[:-1]).found() == {}

    @pytest.mark.parametrize("code", [0, 3])
    def test_a_pilot_that_ends(self, submitter: Submitter, order: Order, code: int) -> None:
        quick = replace(order, program=pilot_program(f"exit {code}"))
        (id,) = self.begin(submitter, quick).values()
        state = self.ended(submitter, id)
        assert state.code in ((code,) if self.tells_codes else (code, None))
        assert submitter.found() == {}

    def test_cancelled_pilots_are_gone(self, submitter: Submitter, order: Order) -> None:
        first, second = self.begin(submitter, order, 2).values()
        submitter.cancel([first])
        self.ended(submitter, first)
        assert submitter.states([second])[second].phase != "gone"
        submitter.cancel([first, second])
        self.ended(submitter, second)
        submitter.cancel([first, second])
        assert submitter.found() == {}

    def test_unknown_ids(self, submitter: Submitter, order: Order) -> None:
        state = submitter.states([self.unknown])[self.unknown]
        assert state.phase == "gone" and state.code is None and state.reason
        submitter.cancel([self.unknown])
        (id,) = self.begin(submitter, order).values()
        states = submitter.states([id, self.unknown])
        assert states[self.unknown].phase == "gone" and states[id].phase != "gone"

    def test_nothing_is_asked_of_nobody(self, submitter: Submitter, order: Order) -> None:
        assert dict(submitter.submit(order, [])) == {}
        assert dict(submitter.states([])) == {}
        submitter.cancel([])
        assert dict(submitter.found()) == {}

    def test_silence_is_an_error(self, silent: Submitter | None, order: Order) -> None:
        if silent is None:
            pytest.skip("this system is never silent")
        for call in (
            lambda: silent.submit(order, [f"{order.label}-0"]),
            lambda: silent.states([self.unknown]),
            lambda: silent.cancel([self.unknown]),
            silent.found,
        ):
            with pytest.raises(SiteError) as caught:
                call()
            assert caught.value.transient, caught.value

    def test_what_a_pilot_is_told(self, submitter: Submitter, order: Order, tmp_path: Path) -> None:
        if not self.shares_files:
            pytest.skip("pilots see no files of this machine")
        told = tmp_path / "told"
        script = f'printf "%s\\n" "$WORD" "$@" >"{told}.part"; cat "$8" >>"{told}.part"; '
        script += f'env >"{told}.env"; mv "{told}.part" "{told}"'
        odd = {"WORD": 'it\'s "$HOME" \\ `x`'}
        loud = replace(order, program=pilot_program(script), env=odd, workdir=str(tmp_path))
        (name,) = self.begin(submitter, loud)
        self.wait(told.exists)
        word, *words, secret = told.read_text().splitlines()
        assert word == odd["WORD"]
        assert secret == "a-secret-of-the-pilots"
        options = dict(zip(words[::2], words[1::2], strict=True))
        assert options["--name"] == name and options["--queue"] == "a queue"
        assert options["--server"] == order.server and options["--cores"] == "1"
        assert float(options["--walltime"].removesuffix("s")) <= 600
        assert secret not in " ".join(words) + Path(f"{told}.env").read_text()


class SubmitterTests(_SubmitterTests):
    """What every submitter must do. The subclass brings a fixture ``make``."""
