"""Copies from and to stores: web servers that cut, resume and fail; programs; fsspec."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pandaflow_pilot import stagein, transfer
from pandaflow_pilot.checksums import checksum
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.leases import Input
from pandaflow_pilot.transfer import Aborted, TransferError

DATA = bytes(range(256)) * 4_096


def fine() -> None:
    return None


class Store(BaseHTTPRequestHandler):
    """Holds files; cuts answers after so many bytes, as often as it is told."""

    server: Web

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        web = self.server
        web.asked.append(self.headers.get("Range"))
        data = web.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if begin > len(data) or (begin == len(data) and begin):
            self.send_error(416)
            return
        status = 206 if begin and web.ranges else 200
        body = data[begin:] if status == 206 else data
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            place = begin if web.honest else begin + 1
            self.send_header("Content-Range", f"bytes {place}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        cut = web.cuts.pop(0) if web.cuts else len(body)
        self.wfile.write(body[:cut])
        self.close_connection = True

    def do_PUT(self) -> None:
        web = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = web.puts.pop(0) if web.puts else 201
        if status < 300:
            web.files[self.path] = body
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Web(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Store)
        self.files: dict[str, bytes] = {"/x": DATA}
        self.asked: list[str | None] = []
        self.cuts: list[int] = []
        self.puts: list[int] = []
        self.ranges = self.honest = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def bring(web_url: str, folder: Path, **fields: object) -> Path:
    given = Input("d/x", (web_url,), fields.get("size"), str(fields.get("checksum", "")))  # type: ignore[arg-type]
    stagein.stage_in(given, str(folder), fine, lambda seconds: None)
    return folder / "d" / "x"


def test_what_was_cut_goes_on_where_it_was(web, tmp_path):
    web.cuts = [300_000, 200_000]
    assert bring(f"{web.url}/x", tmp_path).read_bytes() == DATA
    assert web.asked == [None, "bytes=300000-", "bytes=500000-"]
    assert os.listdir(tmp_path / "d") == ["x"]


def test_servers_without_ranges_begin_again(web, tmp_path):
    web.cuts, web.ranges = [300_000], False
    assert bring(f"{web.url}/x", tmp_path).read_bytes() == DATA


def test_another_part_than_asked_for_is_not_taken(web, tmp_path):
    web.cuts, web.honest = [300_000], False
    assert bring(f"{web.url}/x", tmp_path).read_bytes() == DATA
    assert web.asked == [None, "bytes=300000-", None]


def test_a_part_that_is_longer_than_the_file(web, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.part").write_bytes(DATA + b"more")
    assert bring(f"{web.url}/x", tmp_path).read_bytes() == DATA


def test_checks(web, tmp_path):
    path = tmp_path / "reference"
    path.write_bytes(DATA)
    for kind in ("adler32", "md5", "sha256"):
        bring(f"{web.url}/x", tmp_path, size=len(DATA), checksum=checksum(str(path), kind))
    with pytest.raises(PilotError) as caught:
        bring(f"{web.url}/x", tmp_path, checksum="adler32:00000001")
    assert caught.value.code.name == "input_checksum"
    assert not (tmp_path / "d" / "x").exists()
    with pytest.raises(PilotError) as caught:
        bring(f"{web.url}/none", tmp_path)
    assert caught.value.code.name == "input_missing" and "404" in str(caught.value)


def test_known_checksums(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"Wikipedia")  # the example that RFC 1950's checksum is known by
    assert checksum(str(path)) == "adler32:11e60398"
    path.write_bytes(b"")
    assert checksum(str(path), "md5") == "md5:d41d8cd98f00b204e9800998ecf8427e"
    with pytest.raises(ValueError, match="crc"):
        checksum(str(path), "crc")


def test_put(web, tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    transfer.store(str(tmp_path / "x"), f"{web.url}/new", fine)
    assert web.files["/new"] == DATA
    for status, transient in ((403, False), (503, True)):
        web.puts = [status]
        with pytest.raises(TransferError) as caught:
            transfer.store(str(tmp_path / "x"), f"{web.url}/other", fine)
        assert caught.value.transient is transient
    assert "/other" not in web.files


def test_a_copy_that_nobody_wants_leaves_nothing(tmp_path):
    (tmp_path / "x").write_bytes(DATA)

    def no() -> None:
        raise Aborted

    with pytest.raises(Aborted):
        transfer.store(str(tmp_path / "x"), str(tmp_path / "store" / "x"), no)
    assert os.listdir(tmp_path / "store") == []


def test_fsspec_takes_the_rest(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    transfer.store(str(tmp_path / "x"), "memory://pilot/test/x", fine)
    transfer.fetch("memory://pilot/test/x", str(tmp_path / "y"), fine)
    assert (tmp_path / "y").read_bytes() == DATA
    with pytest.raises(TransferError) as caught:
        transfer.fetch("nosuchscheme://x", str(tmp_path / "z"), fine)
    assert not caught.value.transient


def test_xrootd_by_its_program(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(TransferError, match="no xrdcp"):
            transfer.fetch("root://host//x", str(tmp_path / "y"), fine)
    program = tmp_path / "bin" / "xrdcp"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'for last; do before=$now; now=$last; done\n'
        'case "$before" in\n'
        'root://host//none) echo "[ERROR] 3011 No such file" >&2; exit 54;; esac\n'
        'echo "$@" > "$now"\n'
    )  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    transfer.fetch("root://host//x", str(tmp_path / "y"), fine)
    assert "root://host//x" in (tmp_path / "y").read_text()
    with pytest.raises(TransferError, match="3011") as caught:
        transfer.fetch("root://host//none", str(tmp_path / "z"), fine)
    assert caught.value.missing


def test_file_urls(tmp_path):
    (tmp_path / "a b").write_bytes(b"x")
    transfer.fetch(f"file://localhost{tmp_path}/a%20b", str(tmp_path / "c"), fine)
    assert (tmp_path / "c").read_bytes() == b"x"
    with pytest.raises(TransferError, match="another host"):
        transfer.fetch("file://elsewhere/x", str(tmp_path / "c"), fine)
