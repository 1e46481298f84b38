"""Storage elements of a test server: folders of this machine under several protocols."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_DOMAINS = ("lan", "wan")
_DEEDS = ("read", "write", "delete")
_COPIES = ("third_party_copy_read", "third_party_copy_write")


@dataclass(frozen=True)
class Element:
    """A Rucio storage element (RSE).

    Attributes
    ----------
    name : str
    site : str
        Its attribute ``site``: clients of the same one find it in their local network.
    scheme : {'file', 'root'}
    tape : bool
        Its type is ``TAPE``, and ``staging_area`` is not set: files are copied off it by rules.
    """

    name: str
    site: str
    scheme: Literal["file", "root"] = "file"
    tape: bool = False


SITE_A = Element("SITE_A", "SITEA")
SITE_B = Element("SITE_B", "SITEB")
TAPE_X = Element("TAPE_X", "SITEA", tape=True)
#: Where there is XRootD.
XROOTD_C = Element("XROOTD_C", "SITEC", scheme="root")


def set_up(client: Any, element: Element, folder: Path, url: str) -> None:
    """Make an element, with its protocols, attributes and no limit for ``root``.

    Parameters
    ----------
    client : rucio.client.Client
    element : Element
    folder : Path
        Where its files are on this machine.
    url : str
        ``root://host:port//path`` of the folder; for ``file``, unused.
    """
    client.add_rse(element.name, deterministic=True, rse_type="TAPE" if element.tape else "DISK")
    # Copies between elements are made on this machine, whatever clients read by.
    use = _domains(third_party=True, own=element.scheme == "file")
    client.add_protocol(element.name, _file(folder, use))
    if element.scheme == "root":
        client.add_protocol(element.name, _root(url))
    client.add_rse_attribute(element.name, "site", element.site)
    client.set_account_limit("root", element.name, -1, "local")


def place(folder: Path, scope: str, name: str) -> Path:
    """Return where an element has a file, by Rucio's algorithm ``hash``."""
    digest = hashlib.md5(f"{scope}:{name}".encode(), usedforsecurity=False).hexdigest()
    return folder.joinpath(*scope.split("."), digest[:2], digest[2:4], name)


def describe(path: Path) -> dict[str, Any]:
    """Return size and checksums of a file as Rucio registers them."""
    data = path.read_bytes()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return {"bytes": len(data), "adler32": f"{zlib.adler32(data):08x}", "md5": md5}


def _file(folder: Path, domains: dict[str, dict[str, int]]) -> dict[str, Any]:
    return {
        "scheme": "file",
        "hostname": "localhost",
        "port": 0,
        "prefix": f"{folder}/",
        "impl": "rucio.rse.protocols.posix.Default",
        "domains": domains,
        "extended_attributes": None,
    }


def _root(url: str) -> dict[str, Any]:
    host, _, path = url.removeprefix("root://").partition("//")
    name, _, port = host.partition(":")
    return {
        "scheme": "root",
        "hostname": name,
        "port": int(port),
        "prefix": f"//{path}/",
        "impl": "rucio.rse.protocols.xrootd.Default",
        "domains": _domains(third_party=False, own=True),
        "extended_attributes": None,
    }


def _domains(*, third_party: bool, own: bool) -> dict[str, dict[str, int]]:
    """Return priorities; what is not named is not offered."""
    found = {domain: dict.fromkeys(_DEEDS, 1) if own else {} for domain in _DOMAINS}
    if third_party:
        found["wan"].update(dict.fromkeys(_COPIES, 1))
    return found
