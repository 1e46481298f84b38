"""Write ``docs/reference/server.md`` from the server's own OpenAPI document.

Run ``python docs/make_api.py`` after a change to the routes or messages; a test fails when the page
has drifted from them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pandaflow.grid import messages, places
from pandaflow.grid.messages import BATCH, INLINE_BYTES, PAYLOAD_BYTES
from pandaflow.grid.pool import Pool
from pandaflow.grid.runs.messages import MOST_ITEMS
from pandaflow.server.app import make_app
from pandaflow.server.desk import RunDesk
from pandaflow.server.routes.common import LARGE, MIDDLE, SMALL
from pandaflow.server.service import Service
from pandaflow.server.settings import Limits, ServerSettings
from pandaflow.store.database import Database
from pandaflow.store.sql import SqlStore

PAGE = Path(__file__).parent / "reference" / "server.md"
#: Messages on the page, in the order in which a reader meets them.
MESSAGES = (
    "Left",
    "Wish",
    "Cancel",
    "Pause",
    "Resume",
    "Retry",
    "Append",
    "WishState",
    "JobPage",
    "Submission",
    "Bundle",
    "Needs",
    "CommandJob",
    "InputFile",
    "Cancellation",
    "Outcomes",
    "Outcome",
    "JobResult",
    "OutputFile",
    "Trouble",
    "Acquire",
    "Acquired",
    "Leased",
    "PilotUpdate",
    "Report",
    "Updated",
    "Verdict",
    "QueueBody",
    "Queue",
    "Problem",
)
_TAGS = {
    "runs": "Runs",
    "pool": "The pool",
    "pilots": "Pilots",
    "queues": "Queues",
    "about": "About the server",
}
Json = Mapping[str, Any]

INTRO = """\
# The server's interface

**Beta**: it may still change. This page is written from the server's OpenAPI document by
`docs/make_api.py`. Do not edit it: change `pandaflow/server/routes`, `pandaflow/grid/messages.py`
`pandaflow/grid/places.py` or `pandaflow/grid/runs/messages.py` and run the script. A running server
has the document itself at
`/api/v1/openapi.json`, and a page to try it out at `/api/v1/docs` (which loads its scripts from the
Internet).

Bodies are JSON unless said otherwise. Unknown fields are refused, bytes are base64 of the URL-safe
alphabet, times are seconds since the epoch, sizes bytes. Answers leave out fields that have their
default. Calls carry `Authorization: Bearer TOKEN` or come with a client certificate; who has roles
in several VOs says for which they act by `X-Pandaflow-VO: vo` or `vo.role`. `/health` and
`/metrics` are also there without `/api/v1`.
"""


def document() -> Json:
    """Return the OpenAPI document of this version."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/pool.db"
        runs, database = SqlStore(store), Database(store, 1.0)
        pool, settings = Pool(database), ServerSettings(store)
        try:
            service = Service(pool, RunDesk(runs, pool, settings.limits), settings)
            found: Json = make_app(service).app.openapi()
        finally:
            runs.close()
            database.dispose()
    return found


def render() -> str:
    """Return the page as Markdown."""
    api = document()
    lines = [INTRO, *_routes(api), *_errors(api), *_limits(), *_messages(api)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"


# --- routes -------------------------------------------------------------------------------


def _calls(api: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in api["paths"].items():
        for method, call in methods.items():
            yield path, method.upper(), call


def _routes(api: Json) -> Iterator[str]:
    for tag, title in _TAGS.items():
        yield f"## {title}\n"
        yield "| call | body | answer | |"
        yield "|---|---|---|---|"
        for path, method, call in _calls(api):
            if tag in call["tags"]:
                yield _route(path, method, call)
        yield ""


def _route(path: str, method: str, call: Json) -> str:
    asked = [one["name"] for one in call.get("parameters", ()) if one["in"] == "query"]
    query = f"?{'&'.join(f'{name}=' for name in asked)}" if asked else ""
    status, answer = next(
        (status, answer) for status, answer in call["responses"].items() if status.startswith("2")
    )
    told = _content(answer) or status
    said = " ".join(call["description"].split())
    cells = (f"`{method} {path}{query}`", _content(call.get("requestBody", {})), told, said)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _content(part: Json) -> str:
    """Return what a body or an answer is, as a link to its message where it is one."""
    for media, content in part.get("content", {}).items():
        schema = content["schema"]
        if "$ref" in schema or schema.get("items", {}).get("$ref"):
            return _kind(schema)
        return "JSON" if media == "application/json" else f"`{media.partition(';')[0]}`"
    return ""


# --- errors and limits --------------------------------------------------------------------


def _errors(api: Json) -> Iterator[str]:
    meanings: dict[str, str] = {}
    for _, _, call in _calls(api):
        for status, answer in call["responses"].items():
            if not status.startswith("2"):
                meanings.setdefault(status, answer["description"])
    yield "## Errors\n"
    yield (
        "Errors are `application/problem+json` (RFC 9457) with [these fields](#problem); `detail` "
        "says\nwhat happened and what to do. With 422 the field `errors` names the place of each "
        "mistake; 500 has\na `reference` by which the operator finds the reason in the log.\n"
    )
    yield "| status | meaning |"
    yield "|---|---|"
    meanings["500"] = "Nobody foresaw it"
    yield from (f"| {status} | {meanings[status]} |" for status in sorted(meanings))
    yield ""


def _limits() -> Iterator[str]:
    own = Limits()
    yield "## Limits\n"
    yield "| of | most |"
    yield "|---|---|"
    rows = {
        "a question for work, a queue": f"{SMALL:,} bytes",
        "a log, a cancellation": f"{MIDDLE:,} bytes",
        "a submission, a pilot's reports": f"{LARGE:,} bytes",
        "bundles in one submission, reports in one update": f"{BATCH:,}",
        "the work or the reply of a bundle of functions": f"{INLINE_BYTES:,} bytes, packed",
        "a run's payload in the pool": f"{PAYLOAD_BYTES:,} bytes",
        "one blob of a run that is left": f"{own.blob_bytes:,} bytes",
        "all blobs of a run that is left": f"{own.upload_bytes:,} bytes, {own.upload_files:,} of "
        "them",
        "its specification": f"{own.spec_bytes:,} bytes, {MOST_ITEMS:,} items of a source",
        "the part of a log that is shown": "the last 1,000,000 bytes of each attempt",
        "all bodies in memory": f"{own.held_bytes:,} bytes, else 503",
        "requests of one identity (`--rate`)": f"{own.rate:,.0f} a second, {own.burst:,.0f} at "
        "once, else 429",
        "connections (`--connections`)": f"{own.connections:,}",
        "questions, and reports, that wait for the database": f"{own.waiting:,}, else 503",
        "line and headers of a request": f"{own.head_bytes:,} bytes",
        "waiting for headers, and for a body to begin (`--patience`)": f"{own.head_seconds:g} s; "
        "a body may take 1 s more for each 20,000 bytes",
        "a long poll (`wait`)": "60 s",
    }
    yield from (f"| {what} | {most} |" for what, most in rows.items())
    yield ""


# --- messages -----------------------------------------------------------------------------


def _messages(api: Json) -> Iterator[str]:
    yield "## Messages\n"
    schemas = api["components"]["schemas"]
    for name in (*MESSAGES, *sorted(set(schemas) - set(MESSAGES))):
        yield from _message(name, schemas[name])


def _message(name: str, schema: Json) -> Iterator[str]:
    prose, meanings = _described(schema.get("description", ""))
    wanted = schema.get("required", ())
    yield f"### {name}\n"
    yield prose + "\n"
    if "oneOf" in schema:
        yield f"One of {', '.join(map(_kind, schema['oneOf']))}; `kind` says which.\n"
        return
    if "properties" not in schema:
        return
    yield "| field | kind | meaning |"
    yield "|---|---|---|"
    for field, kind in schema["properties"].items():
        shown = _bytes(name, field) or _kind(kind)
        shown += _default(kind, field in wanted)
        yield f"| `{field}` | {shown} | {meanings.get(field, '')} |"
    yield ""


def _bytes(message: str, field: str) -> str:
    """Tell bytes from text: the document of an answer does not."""
    model = getattr(messages, message, None) or getattr(places, message, None)
    kind = None if model is None else model.model_fields[field].annotation
    return "bytes" if kind is bytes else "bytes or null" if kind == bytes | None else ""


def _described(text: str) -> tuple[str, dict[str, str]]:
    """Return the prose of a docstring, and what it says of each attribute."""
    prose, _, attributes = text.partition("\nAttributes\n----------\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in attributes.splitlines():
        if line[:1].strip():
            names = [name.strip() for name in line.partition(" : ")[0].split(",")]
        for name in names:
            more = line.strip() if not line[:1].strip() else ""
            found[name] = f"{found.get(name, '')} {more}".strip()
    return _plain(prose), {name: _plain(said) for name, said in found.items()}


def _plain(text: str) -> str:
    """Return text of a docstring as Markdown in one line."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return " ".join(text.split()).replace("|", "\\|")


def _default(schema: Json, required: bool) -> str:
    if required:
        return ", required"
    value = schema.get("default")
    return (
        ""
        if value in (None, "") or isinstance(value, list | dict)
        else f", default {_value(value)}"
    )


def _value(value: object) -> str:
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _kind(schema: Json) -> str:
    """Return the kind of a value in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        kinds = [_kind(one) for one in schema["anyOf"]]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{word!r}`" for word in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = schema["items"]
        inner = _simple(items) if items.get("type") == "string" and "enum" not in items else ""
        return f"list of {inner or _kind(items)}{_bounds(schema)}"
    return _simple(schema) + _bounds(schema)


def _simple(schema: Json) -> str:
    if "base64" in schema.get("format", ""):
        return "bytes"
    names = {"object": "object", "string": "text", "integer": "whole number", "null": "null"}
    kind = str(schema.get("type", "anything"))
    return names.get(kind, kind)


def _bounds(schema: Json) -> str:
    """Return how large a value may be; patterns are left to the OpenAPI document."""
    most = [schema[name] for name in ("maximum", "maxLength", "maxItems") if name in schema]
    least = [schema[name] for name in ("minimum", "minItems") if schema.get(name)]
    said = [*_each("at least", least), *_each("at most", most)]
    return f", {', '.join(said)}" if said else ""


def _each(word: str, bounds: Iterable[float]) -> Iterator[str]:
    return (f"{word} {bound:,.0f}" for bound in bounds)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
