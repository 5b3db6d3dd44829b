"""A server's answers over HTTP: a FastAPI app whose single requests make mixed batches.

Needs ``pip install "mtl[serve]"``, and is imported by name: ``from mtl.serving.app import make_app``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from mtl.items import ItemError
from mtl.serving.library import SUFFIX, UnknownTask
from mtl.serving.server import Server

try:
    import uvicorn
    from fastapi import FastAPI, Form, HTTPException, Request, Response, UploadFile
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, Field
except ImportError as error:
    raise ImportError('an HTTP app needs FastAPI and uvicorn: pip install "mtl[serve]"') from error

_AS_JSON = "expected JSON, with content-type: application/json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}")


class Ask(BaseModel):
    """What ``POST /predict`` takes: texts, or images as base64 (a ``data:`` URL does as well)."""

    task: str | list[str] = Field(description="a name for all items, or one for each")
    items: list[str] = Field(min_length=1)
    top: int = Field(1, ge=1, description="how many of the most likely classes to name")
    reject: float | None = Field(None, description="answer null, none of these, where too unsure; see predict(reject=)")


class Chance(BaseModel):
    """A class and its probability."""

    label: str | int | None
    probability: float


class Answer(Chance):
    """The most likely class of one item; null where it was rejected."""

    top: list[Chance]


class Found(BaseModel):
    """The answers, one for each item."""

    answers: list[Answer]


def make_app(
    server: Server, *, folder: str | Path | None = None, max_items: int = 256, max_megabytes: float = 64
) -> FastAPI:
    """The app; it closes the server when it stops.

    ``GET /health``, ``GET /tasks``, ``GET /tasks/{name}``, ``POST /predict`` with JSON (see :class:`Ask`),
    ``POST /predict/files`` with images as a form (``task``, ``files``), and with a folder ``PUT /tasks/{name}``, whose
    body is the file of a task, and ``DELETE /tasks/{name}``. It knows no users: put what asks for passwords before it.

    Args:
        server: of the tasks.
        folder: where tasks that are put are kept; None refuses to change any.
        max_items: of one request.
        max_megabytes: of one request.
    """
    routes = _Routes(server, None if folder is None else Path(folder).expanduser(), max_items)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.close)

    app = FastAPI(title="mtl", lifespan=lifespan)
    app.get("/health")(routes.health)
    app.get("/tasks")(routes.tasks)
    app.get("/tasks/{name}")(routes.task)
    app.post("/predict")(routes.predict)
    app.post("/predict/files")(routes.predict_files)
    if folder is not None:
        app.put("/tasks/{name}", status_code=201)(routes.put)
        app.delete("/tasks/{name}", status_code=204)(routes.delete)
    else:
        app.put("/tasks/{name}", include_in_schema=False)(_refuse_changes)
        app.delete("/tasks/{name}", include_in_schema=False)(_refuse_changes)
    app.exception_handler(UnknownTask)(_says(404))
    app.exception_handler(ValueError)(_says(422))
    app.exception_handler(RequestValidationError)(_malformed)
    app.middleware("http")(_at_most(max_megabytes))
    return app


def run_app(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Answer until interrupted."""
    uvicorn.run(app, host=host, port=port, log_level="warning")


class _Routes:
    def __init__(self, server: Server, folder: Path | None, max_items: int) -> None:
        self._server, self._folder, self._max_items = server, folder, max_items

    async def health(self) -> dict[str, Any]:
        backbone = self._server.backbone
        return {
            "status": "ok",
            "backbone": backbone.name,
            "reads": backbone.adapter.reads,
            "device": str(backbone.device),
            "tasks": len(self._server),
            "in_memory": self._server.in_memory,
        }

    async def tasks(self) -> dict[str, list[str]]:
        return {"tasks": list(self._server)}

    def task(self, name: str) -> dict[str, Any]:
        task = self._server.task(name)
        classes = list(task.class_names) or list(range(task.ways))
        return {"name": name, "classes": classes, "values": task.values, "facts": dict(task.facts)}

    async def predict(self, asked: Ask) -> Found:
        texts = self._server.backbone.adapter.reads == "texts"
        items = asked.items if texts else [_from_base64(place, item) for place, item in enumerate(asked.items)]
        return await self._found(items, asked.task, asked.top, asked.reject)

    async def predict_files(
        self,
        task: Annotated[str, Form()],
        files: list[UploadFile],
        top: Annotated[int, Form(ge=1)] = 1,
        reject: Annotated[float | None, Form()] = None,
    ) -> Found:
        if self._server.backbone.adapter.reads == "texts":
            raise HTTPException(422, f"{self._server.backbone.name} reads texts: send them to /predict as JSON")
        return await self._found([await file.read() for file in files], task, top, reject)

    async def _found(self, items: Sequence[Any], task: str | list[str], top: int, reject: float | None) -> Found:
        names = [task] * len(items) if isinstance(task, str) else task
        if len(names) != len(items):
            raise HTTPException(422, f"{len(names)} names of tasks for {len(items)} items; give one name, or one each")
        if len(items) > self._max_items:
            raise HTTPException(413, f"{len(items)} items: expected at most {self._max_items} in one request")
        pairs = zip(items, names, strict=True)
        futures = [self._server.submit_top(item, name, top, reject=reject) for item, name in pairs]
        found = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        return Found(answers=[_answer(place, one) for place, one in enumerate(found)])

    async def put(self, name: str, request: Request) -> dict[str, Any]:
        assert self._folder is not None
        if not _NAME.fullmatch(name):
            raise HTTPException(
                422, f"a task named {name!r}: expected letters, digits, spaces and . _ - after a letter"
            )
        await asyncio.to_thread(self._put, name, self._folder, await request.body())
        return self.task(name)

    def _put(self, name: str, folder: Path, content: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{uuid.uuid4().hex}"
        try:
            draft.write_bytes(content)
            self._server.read(draft)
            self._server.add(name, draft.replace(folder / f"{name}{SUFFIX}"))
        except ValueError as error:
            raise ValueError(str(error).replace(str(draft), f"the file of task {name!r}")) from error
        finally:
            draft.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        assert self._folder is not None
        self._server.remove(name)
        (self._folder / f"{name}{SUFFIX}").unlink(missing_ok=True)


def _answer(place: int, found: Any) -> Answer:
    if isinstance(found, ItemError):
        raise ItemError(place, found.why)
    if isinstance(found, BaseException):
        raise found
    best, *_ = top = [Chance(label=label, probability=probability) for label, probability in found]
    return Answer(label=best.label, probability=best.probability, top=top)


def _from_base64(place: int, item: str) -> bytes:
    """Never a path: nobody reads the server's own files over HTTP."""
    data = item.partition(",")[2] if item.startswith("data:") else item
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ItemError(place, f"no image in base64 ({error}); send files to /predict/files") from error


def _says(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(_: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, status)

    return answer


async def _malformed(_: Request, error: RequestValidationError) -> Response:
    """One line about a body of another shape; without its contents, which may be large."""
    found = [(".".join(map(str, e["loc"][1:])), e["msg"]) for e in error.errors()]
    said = [f"{place}: {why}" if place else f"{why}; {_AS_JSON}" for place, why in found]
    return JSONResponse({"detail": "; ".join(said)}, 422)


async def _refuse_changes(name: str) -> Response:
    del name
    raise HTTPException(405, "tasks are not changed over HTTP here; mtl serve --changes allows it")


def _at_most(megabytes: float) -> Callable[[Request, Any], Awaitable[Response]]:
    """Refuse a body before it is read."""

    async def check(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length")
        if length is None and request.headers.get("transfer-encoding"):
            return JSONResponse({"detail": "send a content-length"}, 411)
        if length is not None and int(length) > megabytes * 2**20:
            return JSONResponse({"detail": f"{int(length):,} bytes: expected at most {megabytes:g} MiB"}, 413)
        return await go_on(request)

    return check
