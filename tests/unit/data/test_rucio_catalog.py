"""What a real Rucio tells of its datasets, and in how many calls."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

import pytest

from pandaflow.core.errors import DataError, SiteError, WorkflowError
from pandaflow.data.rucio.catalog import Catalog, Replica, connect
from pandaflow.data.rucio.names import Did, parse_did
from pandaflow.testing.grid import random_name


@pytest.fixture
def catalog(rucio) -> Catalog:
    return Catalog(rucio.client())


def made(rucio: Any, count: int, *elements: str, **options: Any) -> Did:
    did = Did("test", random_name("ds"))
    rucio.dataset(did.scope, did.name, count, *elements, **options)
    return did


def contain(rucio: Any, *inner: Did) -> Did:
    did, client = Did("test", random_name("all")), rucio.client()
    client.add_container(did.scope, did.name)
    if inner:
        rows = [{"scope": one.scope, "name": one.name} for one in inner]
        client.attach_dids(did.scope, did.name, rows)
    return did


def calls(rucio: Any, before: dict[str, int]) -> int:
    return sum((Counter(rucio.counts()) - Counter(before)).values())


def test_names():
    did = parse_did("mc23:zmumu.AOD")
    assert did == Did("mc23", "zmumu.AOD") == parse_did(did.url)
    assert str(did) == "mc23:zmumu.AOD" and not did.wild
    assert parse_did("cms:/store/*").wild
    for text in ("mc23", ":x", "mc23:", "mc*:x", "rucio://host/a:b"):
        with pytest.raises(WorkflowError, match="SCOPE:NAME"):
            parse_did(text)


def test_files_have_sizes_checksums_events_and_replicas(rucio, catalog):
    did = made(rucio, 3, "SITE_A", "TAPE_X", events=50)
    found = {file.did.name: file for file in catalog.files(did)}
    assert len(found) == 3
    for name, file in found.items():
        path = rucio.path("test", name, "SITE_A")
        assert file.size == 1_000 and file.events == 50
        assert file.checksum == f"adler32:{zlib.adler32(path.read_bytes()):08x}"
        replicas = {one.rse: one for one in file.replicas}
        assert replicas["SITE_A"] == Replica("SITE_A", f"file://localhost{path}")
        assert replicas["TAPE_X"].tape and len(replicas) == 2
        item = file.file()
        assert item.path == f"rucio://test:{name}" and item.name == name
        assert item.replicas == (f"file://localhost{path}",)


@pytest.mark.very_slow
def test_replicas_of_the_own_site_come_first(rucio):
    did = made(rucio, 1, "SITE_A", "SITE_B")
    for site in ("SITEA", "SITEB"):
        (file,) = Catalog(rucio.client(), site=site).files(did)
        assert file.replicas[0].rse[-1] == site[-1]


@pytest.mark.very_slow
def test_schemes_choose_among_protocols(rucio):
    if rucio.xrootd is None:
        pytest.skip("no XRootD")
    did = made(rucio, 1, "SITE_A", "XROOTD_C")
    (file,) = Catalog(rucio.client(), schemes=["root"]).files(did)
    assert [one.rse for one in file.replicas] == ["XROOTD_C"]
    assert file.replicas[0].pfn.startswith(rucio.xrootd.url)


@pytest.mark.very_slow
def test_containers_may_be_nested_and_share_files(rucio, catalog):
    one, two = made(rucio, 2), made(rucio, 3)
    inner = contain(rucio, one, two)
    other = contain(rucio, one)
    outer = contain(rucio, inner, other)
    assert len(list(catalog.files(outer))) == 5
    tree = {entry.did: entry for entry in catalog.tree(outer)}
    assert {did: entry.kind for did, entry in tree.items()} == {
        **dict.fromkeys((outer, inner, other), "container"),
        **dict.fromkeys((one, two), "dataset"),
    }
    assert [entry.kind for entry in catalog.describe([parse_did(f"test:{one.name}.0000")])] == [
        "file"
    ]


@pytest.mark.very_slow
def test_patterns(rucio, catalog):
    word = random_name("mc")
    for name in ("a", "b"):
        rucio.dataset("test", f"{word}.{name}", 1)
    rucio.dataset("test", f"{word}x", 1)
    pattern = parse_did(f"test:{word}.*")
    assert [entry.did.name for entry in catalog.find(pattern)] == [f"{word}.a", f"{word}.b"]
    assert len(list(catalog.files(pattern))) == 2
    with pytest.raises(DataError, match=r"Catalog\.find"):
        next(catalog.pages([pattern]))


@pytest.mark.very_slow
def test_open_is_what_can_still_grow(rucio, catalog):
    client, first, second = rucio.client(), made(rucio, 1), made(rucio, 1)
    both = contain(rucio, first, second)
    for did in (both, first):
        assert catalog.is_open(did)
        client.close(did.scope, did.name)
    assert not catalog.is_open(first)
    assert catalog.is_open(both)
    client.close(second.scope, second.name)
    assert not catalog.is_open(both)


@pytest.mark.very_slow
def test_what_is_not_there(rucio, catalog):
    for name in ("nothing", "nothing.*"):
        with pytest.raises(DataError, match=f"no test:{name[:7]}"):
            catalog.find(Did("test", name))
    assert list(catalog.pages([])) == []
    assert list(catalog.files(contain(rucio))) == []
    with pytest.raises(DataError, match="NOWHERE"):
        catalog.distances("SITE_A", ["NOWHERE"])


@pytest.mark.very_slow
def test_replicas_on_their_way(rucio, catalog):
    did = made(rucio, 2, "TAPE_X")
    files = list(catalog.files(did))
    assert [file.file().replicas for file in files] == [(), ()]
    rucio.client().add_replication_rule([{"scope": "test", "name": did.name}], 1, "SITE_A")

    def states() -> list[str]:
        located = catalog.locate(files)
        return sorted(one.state for file in located for one in file.replicas if not one.tape)

    assert states() == ["COPYING", "COPYING"]
    rucio.conveyor(limit=1)
    assert states() == ["AVAILABLE", "COPYING"]
    rucio.poll()
    assert states() == ["AVAILABLE", "AVAILABLE"]


@pytest.mark.very_slow
def test_elements_and_distances(rucio, catalog):
    elements = catalog.elements()
    assert elements["SITE_A"].attributes["site"] == "SITEA"
    assert [name for name, one in elements.items() if one.tape] == ["TAPE_X"]
    assert list(catalog.elements("site=SITEB")) == ["SITE_B"]
    wanted = {"SITE_A": 0, "SITE_B": 1, "TAPE_X": 1}
    assert catalog.distances("SITE_A", wanted) == wanted
    before = rucio.counts()
    catalog.elements()
    catalog.distances("SITE_A", wanted)
    assert calls(rucio, before) == 1


@pytest.mark.very_slow
def test_there_is_no_call_for_each_file(rucio):
    names = made(rucio, 1_500, "SITE_A", "SITE_B", size=10)
    both = contain(rucio, names, made(rucio, 500, size=10))
    catalog, before = Catalog(rucio.client()), rucio.counts()
    files = list(catalog.files(both))
    assert len(files) == 2_000 and all(file.replicas for file in files)
    assert calls(rucio, before) <= len(files) / 500


def test_the_first_page_is_there_before_the_last(rucio):
    did = made(rucio, 30, size=10)
    pages = Catalog(rucio.client(), page=10).pages([did])
    before = rucio.counts()
    first = next(pages)
    assert len(first) == 10 and all(file.replicas for file in first)
    assert calls(rucio, before) == 2
    assert [len(page) for page in pages] == [10, 10]
    assert calls(rucio, before) == 4


@pytest.mark.very_slow
def test_a_server_that_is_away(rucio):
    did = made(rucio, 1)
    catalog = Catalog(rucio.client(rucio.account(random_name("user"))))
    with rucio.stopped(), pytest.raises(SiteError) as caught:
        list(catalog.files(did))
    assert caught.value.transient
    assert len(list(catalog.files(did))) == 1


@pytest.mark.very_slow
def test_without_a_configuration(monkeypatch, tmp_path):
    pytest.importorskip("rucio", reason="no rucio-clients: extra 'rucio'")
    from rucio.common.config import clean_cached_config

    clean_cached_config()
    monkeypatch.setenv("RUCIO_CONFIG", str(tmp_path / "none.cfg"))
    with pytest.raises(SiteError, match="ConfigLoadingError") as caught:
        connect()
    assert not caught.value.transient
    clean_cached_config()
