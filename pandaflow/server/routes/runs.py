"""Runs that people leave with the server: leaving, looking, steering, fetching results."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import IO, Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from pandaflow.core.status import JobStatus
from pandaflow.grid.runs.messages import (
    PLACE,
    Driven,
    JobPage,
    Left,
    Noted,
    Wish,
    Wished,
    WishState,
)
from pandaflow.server.files import part_of
from pandaflow.server.history import history
from pandaflow.server.problems import Refusal
from pandaflow.server.routes.common import (
    SMALL,
    WITH_BODY,
    BundleNumber,
    Caller,
    RunName,
    Server,
    message,
    nothing,
    read_body,
    reads,
    reads_plain,
    refusals,
)
from pandaflow.server.service import Service

router = APIRouter(prefix="/runs", tags=["runs"])
#: Bytes of an answer, or of an upload, that are in memory.
_PART = 1_000_000
#: Seconds between two looks for the end of a log.
_TAIL = 0.3
_EXAMPLE = {"spec": {"version": 1, "workflow": {"name": "hello", "tasks": []}}}

Row = dict[str, Any]
TaskName = Annotated[str, Query(min_length=1, max_length=1_000, description="The task's name.")]
Index = Annotated[int, Query(ge=0, lt=2**31, description="The job's index.")]
After = Annotated[int, Query(ge=0, lt=2**63, description="Only later ones.")]
State = Annotated[JobStatus | None, Query(description="Only jobs in this state.")]


def _text(description: str, media: str = "text/plain") -> dict[int | str, dict[str, Any]]:
    schema = {"type": "string"} if media.startswith("text/") else {"format": "binary"}
    return {200: {"description": description, "content": {media: {"schema": schema}}}}


# --- leaving ------------------------------------------------------------------------------


@router.put(
    "/{run}/blobs/{name}",
    status_code=204,
    response_class=Response,
    responses=refusals(404, 409, *WITH_BODY),
    openapi_extra=reads_plain("application/octet-stream"),
)
async def put_blob(
    request: Request,
    service: Server,
    actor: Caller,
    run: RunName,
    name: Annotated[str, Path(max_length=200, description="As the workflow names it.")],
) -> Response:
    """Upload what a run brings along: before the run is left, or items of its streams later."""
    blob, new = await service.at_desk(service.desk.blob, actor, run, name, service.now())
    waiting = bytearray()
    try:
        limit = service.settings.limits.blob_bytes
        async for part in service.bodies.parts(request, limit, keep=False):
            waiting += part
            if len(waiting) >= _PART:
                await service.at_desk(blob.write, bytes(waiting))
                waiting.clear()
        await service.at_desk(blob.write, bytes(waiting))
        await service.at_desk(lambda: blob.keep(replace=new))
    except OSError as error:
        raise Refusal(503, "the place of the results cannot be written now", retry=30) from error
    finally:
        blob.drop()
    return nothing()


@router.put(
    "/{run}",
    status_code=204,
    response_class=Response,
    responses=refusals(409, *WITH_BODY),
    openapi_extra=reads(Left, _EXAMPLE),
)
async def leave(request: Request, service: Server, actor: Caller, run: RunName) -> Response:
    """Leave a workflow, whose blobs have been uploaded, to be run; may be repeated."""
    body = await read_body(service, request, Left, service.settings.limits.spec_bytes)
    await service.at_desk(service.desk.leave, actor, run, body.spec, service.now())
    return nothing()


# --- looking ------------------------------------------------------------------------------


@router.get("", responses=refusals())
async def runs(
    service: Server, actor: Caller, limit: Annotated[int, Query(ge=1, le=10_000)] = 100
) -> list[Row]:
    """List runs that one may see, newest first."""
    return await service.at_desk(lambda: service.desk.reader(actor).runs(limit))


@router.get("/{run}", responses=refusals(404))
async def run(service: Server, actor: Caller, run: RunName) -> Row:
    """Show a run, by its id, the start of it or `last`: its state, its tasks, counts of jobs."""
    return await service.at_desk(service.desk.run, actor, run)


@router.get("/{run}/jobs", response_model=JobPage, responses=refusals(404))
async def jobs(
    service: Server,
    actor: Caller,
    run: RunName,
    task: Annotated[str | None, Query(max_length=1_000)] = None,
    status: State = None,
    index: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
    after: Annotated[str | None, Query(pattern=PLACE, description="Of the page before.")] = None,
) -> Response:
    """List jobs, a page at a time: `after` of one page asks for the next."""
    only = (task, None if status is None else str(status), index)
    found, last = await _look(service, actor, run, "jobs_page", only, _place(after), limit)
    place = None if last is None else f"{last[0]}:{last[1]}"
    return message(JobPage.model_construct(jobs=found, after=place))


@router.get("/{run}/attempts", responses=refusals(404))
async def attempts(
    service: Server, actor: Caller, run: RunName, task: TaskName, index: Index
) -> list[Row]:
    """List the attempts of a job that have ended."""
    return await _rows(service, actor, run, "attempts", task, index)


@router.get("/{run}/story", responses=refusals(404))
async def story(
    service: Server, actor: Caller, run: RunName, task: TaskName, index: Index
) -> list[Row]:
    """List the events that touched a job."""
    return await _rows(service, actor, run, "story", task, index)


@router.get(
    "/{run}/explain",
    response_class=Response,
    responses={**_text("Why the job is where it is"), **refusals(404)},
)
async def explain(
    service: Server, actor: Caller, run: RunName, task: TaskName, index: Index
) -> Response:
    """Tell in words why a job is where it is."""
    return _plain(await service.at_desk(service.desk.explain, actor, run, task, index))


@router.get(
    "/{run}/log",
    response_class=Response,
    responses={**_text("The ends of its attempts' logs"), **refusals(404)},
)
async def log(
    service: Server, actor: Caller, run: RunName, task: TaskName, index: Index
) -> Response:
    """Read what a job wrote: the last megabyte of each attempt."""
    return _plain(await service.at_desk(service.desk.log, actor, run, task, index))


@router.get("/{run}/upstream", responses=refusals(404))
async def upstream(
    service: Server, actor: Caller, run: RunName, task: TaskName
) -> list[int] | None:
    """List the ids of the tasks that a task reads or waits for; null: it cannot be told."""
    found = await _look(service, actor, run, "upstream", task)
    return None if found is None else sorted(found)


@router.get("/{run}/sites", responses=refusals(404))
async def sites(service: Server, actor: Caller, run: RunName) -> list[str]:
    """List the sites that jobs of a run were given."""
    found: list[str] = await _look(service, actor, run, "sites")
    return found


@router.get("/{run}/bundles/{bundle}", responses=refusals(404))
async def bundle(service: Server, actor: Caller, run: RunName, bundle: BundleNumber) -> Row:
    """Show a bundle of jobs."""
    found: Row = await _look(service, actor, run, "bundle", bundle)
    return found


@router.get(
    "/{run}/bundles/{bundle}/tail",
    response_class=Response,
    responses={**_text("The end of its log; empty if no pilot has it"), **refusals(404)},
)
async def tail(
    request: Request,
    service: Server,
    actor: Caller,
    run: RunName,
    bundle: BundleNumber,
    wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait for news.")] = 0.0,
) -> Response:
    """Read the end of the log of a bundle that a pilot runs now, as fresh as can be had."""
    before, asked = await service.at_desk(service.desk.tail, actor, run, bundle)
    text, left = before, wait
    while asked and left > 0 and text == before and not service.runs.closed:
        await service.runs.wait(run, min(left, _TAIL), request.receive)
        left -= _TAIL
        text, asked = await service.at_desk(service.desk.tail, actor, run, bundle)
    return _plain(text or before)


@router.get("/{run}/timeline", responses=refusals(404))
async def timeline(
    service: Server,
    actor: Caller,
    run: RunName,
    limit: Annotated[int, Query(ge=1, le=20_000)] = 20_000,
) -> list[Row]:
    """List attempts that have ended, for charts."""
    return await _rows(service, actor, run, "timeline", limit)


@router.get("/{run}/history", responses=refusals(404))
async def events(
    service: Server,
    actor: Caller,
    run: RunName,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> list[Row]:
    """List events of a run, oldest first."""
    return await _rows(service, actor, run, "events", after, limit)


@router.get(
    "/{run}/events",
    response_class=StreamingResponse,
    responses={
        **_text("Events as they happen: `event` is their kind, `id` their number"),
        **refusals(404),
    },
)
async def watch(
    request: Request,
    service: Server,
    actor: Caller,
    run: RunName,
    after: After = 0,
    seconds: Annotated[float, Query(ge=0, le=86_400, description="Of the stream.")] = 3_600.0,
) -> Response:
    """Watch a run by server-sent events until it ends."""
    last = request.headers.get("last-event-id", "")
    begin = int(last) if last.isascii() and last.isdigit() and len(last) < 19 else after
    found = await service.at_desk(service.desk.see, actor, run)
    body = history(service, actor, found["id"], begin, seconds, request.receive)
    return StreamingResponse(body, media_type="text/event-stream")


@router.get("/{run}/noted", response_model=Noted, responses=refusals(404))
async def noted(
    service: Server,
    actor: Caller,
    run: RunName,
    kind: Annotated[str, Query(min_length=1, max_length=100)],
    after: After = 0,
) -> Response:
    """List events of one kind."""
    found, newest = await _look(service, actor, run, "noted", kind, after)
    return _json(Noted.model_construct(events=found, newest=newest))


@router.get("/{run}/driven", response_model=Driven, responses=refusals(404))
async def driven(service: Server, actor: Caller, run: RunName) -> Response:
    """Tell whether a runner drives a run now."""
    return _json(Driven(driven=await service.at_desk(service.desk.driven, actor, run)))


@router.get(
    "/{run}/state",
    response_class=StreamingResponse,
    responses={**_text("Lines of JSON", "application/jsonl"), **refusals(404)},
)
async def state(service: Server, actor: Caller, run: RunName) -> Response:
    """Fetch all that is known of a run's jobs, in short: for handles that gather its results."""
    file = await service.at_desk(service.desk.state, actor, run)
    return StreamingResponse(
        _sent(service, file, None),
        media_type="application/jsonl",
        headers={"Content-Encoding": "gzip"},
    )


# --- results ------------------------------------------------------------------------------


@router.get(
    "/{run}/files/{name:path}",
    response_class=StreamingResponse,
    responses={
        **_text("The file", "application/octet-stream"),
        206: {"description": "The part of it that `Range` asks for"},
        **refusals(404, 416),
    },
)
async def file(
    request: Request,
    service: Server,
    actor: Caller,
    run: RunName,
    name: Annotated[str, Path(max_length=1_000, description="Below the run's results.")],
) -> Response:
    """Fetch a file of a run's results, or a part of it: values, logs, outputs of commands."""
    opened, size = await service.at_desk(service.desk.file, actor, run, name)
    try:
        part = part_of(request.headers.get("range"), size)
    except BaseException:
        opened.close()
        raise
    begin, end = part or (0, size)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - begin),
        "Content-Disposition": "attachment",
    }
    if part is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    return StreamingResponse(
        _sent(service, opened, (begin, end)),
        200 if part is None else 206,
        headers,
        "application/octet-stream",
    )


# --- steering -----------------------------------------------------------------------------


@router.post(
    "/{run}/requests",
    response_model=Wished,
    responses=refusals(404, *WITH_BODY),
    openapi_extra=reads(Wish, {"kind": "cancel"}),
)
async def wish(request: Request, service: Server, actor: Caller, run: RunName) -> Response:
    """Ask whoever drives a run to `cancel`, `pause`, `resume` or `retry`, or `append` items."""
    body = await read_body(service, request, Wish, SMALL)
    number = await service.at_desk(service.desk.wish, actor, run, body.root)
    return _json(Wished(id=number))


@router.get("/{run}/requests", responses=refusals(404))
async def requests(service: Server, actor: Caller, run: RunName) -> list[Row]:
    """List requests that have not been carried out yet."""
    return await _rows(service, actor, run, "open_requests")


@router.get("/{run}/requests/{number}", response_model=WishState, responses=refusals(404))
async def request_state(
    service: Server,
    actor: Caller,
    run: RunName,
    number: Annotated[int, Path(ge=0, lt=2**31, description="As told when it was asked.")],
) -> Response:
    """Tell whether a request was carried out, or refused and why."""
    return _json(await service.at_desk(service.desk.wish_state, actor, run, number))


# --- pieces -------------------------------------------------------------------------------


def _place(after: str | None) -> tuple[int, int]:
    task, _, index = (after or "").partition(":")
    return (int(task), int(index)) if after else (-1, -1)


async def _rows(service: Service, actor: Any, run: str, method: str, *arguments: Any) -> list[Row]:
    found: list[Row] = await _look(service, actor, run, method, *arguments)
    return found


async def _look(service: Service, actor: Any, run: str, method: str, *arguments: Any) -> Any:
    return await service.at_desk(service.desk.look, actor, run, method, *arguments)


async def _sent(
    service: Service, file: IO[bytes], part: tuple[int, int] | None
) -> AsyncIterator[bytes]:
    """Yield a file, or a part of it, and close it however that ends."""
    with contextlib.closing(file):
        begin, end = part or (0, 2**63)
        file.seek(begin)
        left = end - begin
        while left > 0:
            piece = await service.at_desk(file.read, min(_PART, left))
            if not piece:
                return
            left -= len(piece)
            yield piece


def _plain(text: str) -> Response:
    return Response(text, media_type="text/plain; charset=utf-8")


def _json(content: Any) -> Response:
    return Response(content.model_dump_json(), media_type="application/json")
