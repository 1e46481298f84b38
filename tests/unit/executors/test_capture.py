from __future__ import annotations

import contextvars
import io
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pandaflow.data.results import ResultStore
from pandaflow.executors import capture
from pandaflow.executors.payload import run_bundle  # noqa: F401 - loads what the jobs need


def talk(x: int) -> int:
    if x == 1:
        print("out", x)
        sys.stderr.write("err\n")
        sys.stdout.buffer.write(b"bytes\n")
        logging.getLogger("mine").warning("logged %d", x)
    return x


@pytest.mark.parametrize("isolation", ["process", "thread", "caller"])
def test_output_is_kept_by_job(bench: Any, isolation: str) -> None:
    bench.run(talk, bench.spec([0, 1, 0, 1]), isolation=isolation)
    store, logs = ResultStore(bench.results), bench.ended.logs
    assert set(logs) == {1, 3}
    for span in logs.values():
        text = store.read_log(0, span)
        assert text.splitlines()[:3] == ["out 1", "err", "bytes"]
        assert text.count("logged 1") == 1
    assert len(store.read_log(0).encode()) == sum(length for _, length in logs.values())


def test_the_caller_sees_the_output_too(bench: Any, capsys: Any) -> None:
    bench.run(lambda x: print("hello"), bench.spec([0]), isolation="caller")
    assert "hello" in capsys.readouterr().out
    assert ResultStore(bench.results).read_log(0) == "hello\n"


def test_silent_bundles_have_no_log(bench: Any) -> None:
    bench.run(lambda x: x, bench.spec([0]))
    assert not os.path.exists(os.path.join(bench.results, "logs"))
    assert ResultStore(bench.results).read_log(0) == ""


def test_other_threads_write_on_as_before(bench: Any, capsys: Any) -> None:
    def work(x: int) -> None:
        inside = contextvars.copy_context()
        threads = [
            threading.Thread(target=print, args=("outside",)),
            threading.Thread(target=inside.run, args=(print, "inside")),
        ]
        for thread in threads:
            thread.start()
            thread.join()

    bench.run(work, bench.spec([0]), isolation="thread")
    print("after")
    assert capsys.readouterr().out == "outside\nafter\n"
    assert ResultStore(bench.results).read_log(0) == "inside\n"


def test_streams_can_be_restored_and_are_wrapped_once(capsys: Any) -> None:
    before = sys.stdout, sys.stderr
    capture.install()
    wrapped = sys.stdout
    capture.install()
    assert sys.stdout is wrapped is not before[0]
    print("through")
    assert capsys.readouterr().out == "through\n"
    capture.restore()
    assert (sys.stdout, sys.stderr) == before


def test_streams_swapped_by_others_are_wrapped_again() -> None:
    capture.install()
    before, other = sys.stdout, io.StringIO()
    try:
        sys.stdout = other
        capture.install()
        print("x", flush=True)
        assert other.getvalue() == "x\n" and sys.stdout is not other
    finally:
        sys.stdout = before
        capture.restore()


def test_a_log_that_cannot_be_written_fails_no_job(bench: Any) -> None:
    os.makedirs(bench.results)
    Path(bench.results, "logs").touch()
    out = bench.run(talk, bench.spec([1]))
    assert out.values == [1] and bench.ended.logs == {} and not bench.ended.failures


def test_the_log_can_be_read_while_the_job_runs(bench: Any, until: Any, tmp_path: Path) -> None:
    go = str(tmp_path / "go")

    def work(x: int) -> None:
        import os
        import time

        print("early")
        while not os.path.exists(go):
            time.sleep(0.01)

    thread = bench.aside(work, bench.spec([0]), isolation="thread")
    until(lambda: ResultStore(bench.results).read_log(0) == "early\n")
    Path(go).touch()
    thread.join(20)
    assert ResultStore(bench.results).read_log(0) == "early\n"


# --- the sink ---------------------------------------------------------------------------


class Log(io.BytesIO):
    def close(self) -> None:
        """Stay readable."""


@contextmanager
def sink_over(**options: Any) -> Iterator[tuple[capture.Sink, Log]]:
    log = Log()
    yield capture.Sink(lambda: log, **options), log


def test_the_middle_of_long_output_is_left_out(monkeypatch: Any) -> None:
    monkeypatch.setattr(capture, "HEAD", 100)
    monkeypatch.setattr(capture, "TAIL", 50)
    with sink_over() as (sink, log):
        sink.write(b"first job\n")
        first = sink.mark()
        for n in range(1000):
            sink.write(f"{n:9d}\n".encode())
        second = sink.mark()
        sink.write(b"a" * 300)
        third = sink.mark()
        sink.write(b"b" * 100)
        sink.close()
    text = log.getvalue()
    assert text[: first[1]] == b"first job\n"
    part = text[second[0] : sum(second)]
    assert part.startswith(b"        0\n") and part.endswith(b"      999\n")
    assert b"[... 9850 bytes of output left out ...]" in part and len(part) < 250
    part = text[third[0] : sum(third)]
    assert part.count(b"a") == 150 and b"[... 150 bytes of output left out ...]" in part
    assert text.endswith(b"b" * 100)


def test_one_huge_write_is_noticed(bench: Any) -> None:
    def shout(x: int) -> None:
        print("x" * 12_000_000)

    bench.run(shout, bench.spec([0]))
    offset, length = bench.ended.logs[0]
    assert offset == 0 and 10_000_000 <= length < 10_001_000
    assert "bytes of output left out" in ResultStore(bench.results).read_log(0)


def test_detached_output_goes_with_its_job() -> None:
    with sink_over(live=False) as (sink, first):
        sink.write(b"one ")
        assert sink.mark() == (0, 4)
        sink.write(b"two a ")
        sink.flush()
        rest = sink.hand_over()
        rest.close()
        assert first.getvalue() == b"one "
        second = Log()
        sink.write(b"two b")
        sink.attach(lambda: second)
        sink.flush()
        assert second.getvalue() == b"two a two b"
        assert sink.mark() == (0, 11)
        sink.close()
        assert second.getvalue() == b"two a two b"


# --- logging, in processes of its own: the root logger belongs to the test runner here ---


def run_script(text: str) -> subprocess.CompletedProcess[str]:
    start = "import logging, sys\nfrom pandaflow.executors import capture\n"
    return subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(text)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


KEEP = """
import io
class Log(io.BytesIO):
    def close(self): pass
log = Log()
sink = capture.Sink(lambda: log)
def said():
    sink.flush()
    return log.getvalue().decode()
"""


def test_warnings_without_any_configuration_are_kept_once() -> None:
    done = run_script(
        KEEP
        + """
capture.install()
logging.getLogger("a").warning("outside")
with capture.routed(sink):
    logging.getLogger("a").warning("inside")
assert said() == "inside\\n", said()
"""
    )
    assert done.stderr == "outside\n"


def test_a_job_may_configure_logging() -> None:
    run_script(
        KEEP
        + """
capture.install()
with capture.routed(sink):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.info("info")
assert said() == "info\\n", said()
"""
    )


def test_handlers_on_other_streams_get_company() -> None:
    done = run_script(
        KEEP
        + """
logging.basicConfig(level=logging.INFO, format="%(message)s")  # holds the real stderr
capture.install()
logging.info("outside")
with capture.routed(sink):
    logging.getLogger("a.b").info("inside %d", 1)
assert said() == "INFO a.b: inside 1\\n", said()
capture.restore()
assert len(logging.getLogger().handlers) == 1
"""
    )
    assert done.stderr == "outside\ninside 1\n"
