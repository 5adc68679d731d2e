"""The routes: the page, /v1/models, /v1/completions and /v1/chat/completions."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import resources
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from scratchgpt.errors import UserError
from torchgpt.chat import TooLong
from torchgpt.serving.engine import Engine, Full, Task
from torchgpt.serving.errors import ApiError, error_response
from torchgpt.serving.guard import Guard
from torchgpt.serving.requests import CompletionRequest, Request, read_chat, read_completion
from torchgpt.serving.responses import ChatShape, CompletionShape, Shape, usage
from torchgpt.writer import Generation, Piece, Writer

MAX_BODY = 1 << 20  # bytes
_PAGE = {
    "/": ("index.html", "text/html"),
    "/chat.css": ("chat.css", "text/css"),
    "/chat.js": ("chat.js", "text/javascript"),
}

Events = AsyncIterator[tuple[int, list[Piece] | None]]  # (number of the text, its new pieces; None: it is finished)


class _EventStream(StreamingResponse):
    """Server-sent events; when the client leaves, even before the first, the texts end."""

    def __init__(self, events: AsyncIterator[str], task: Task):
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._task.cancel()


class Service:
    """What the routes do, for one model."""

    def __init__(self, writer: Writer, name: str, engine: Engine, max_new_tokens: int):
        self._writer, self._name, self._engine, self._max_new_tokens = writer, name, engine, max_new_tokens

    async def page(self, request: HttpRequest) -> Response:
        """A file of the page."""
        name, media_type = _PAGE[request.url.path]
        data = resources.files("torchgpt.serving").joinpath("page", name).read_bytes()
        return Response(data, media_type=media_type, headers={"cache-control": "no-cache"})

    async def models(self, request: HttpRequest) -> Response:
        """The one model, or its list. Beside OpenAI's fields, what the page needs to know."""
        model = {
            "id": self._name,
            "object": "model",
            "created": 0,
            "owned_by": "scratchgpt",
            "chat": self._writer.chat_format is not None,
            "context_length": self._writer.context_length,
            "max_new_tokens": self._max_new_tokens,
        }
        if "name" not in request.path_params:
            return JSONResponse({"object": "list", "data": [model]})
        self._check_model(request.path_params["name"])
        return JSONResponse(model)

    async def chat(self, http: HttpRequest) -> Response:
        """Answer a conversation."""
        request = read_chat(await self._read_body(http), self._max_new_tokens)
        if self._writer.chat_format is None:
            raise ApiError(
                400,
                f"The model {self._name!r} was not tuned on instructions by ScratchGPT, so it cannot chat:"
                " use /v1/completions to continue a text.",
            )
        shown = await _checked(self._writer.fit, request.messages, request.settings, request.drop_turns)
        generations = [self._writer.answer(shown, request.settings, g) for g in _generators(request, request.n)]
        extra = {"dropped_messages": shown.dropped} if request.drop_turns else {}
        shape = ChatShape(self._name, self._writer.tokenizer, request.stream, **extra)
        return await self._respond(http, request, shape, [shown.prompt], generations)

    async def complete(self, http: HttpRequest) -> Response:
        """Continue texts."""
        request = read_completion(await self._read_body(http), self._max_new_tokens)
        prompts = await _checked(self._read_prompts, request)
        repeated = [prompt for prompt in prompts for _ in range(request.n)]
        generations = [
            self._writer.continue_text(prompt, request.settings, generator)
            for prompt, generator in zip(repeated, _generators(request, len(repeated)), strict=True)
        ]
        shape = CompletionShape(self._name, self._writer.tokenizer, request.stream)
        return await self._respond(http, request, shape, prompts, generations)

    def _read_prompts(self, request: CompletionRequest) -> list[list[int]]:
        writer = self._writer
        prompts = [writer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in request.prompts]
        for prompt in prompts:
            if not all(0 <= token < writer.tokenizer.size for token in prompt):
                raise UserError(f"a token id is outside the vocabulary of {writer.tokenizer.size}")
            if len(prompt) > writer.context_length:
                raise TooLong(
                    f"the prompt has {len(prompt)} tokens, the model's context holds"
                    f" {writer.context_length}: shorten it"
                )
        return prompts

    def _check_model(self, name: Any) -> None:
        if name not in (None, self._name):
            raise ApiError(
                404,
                f"There is no model {str(name)[:100]!r} here, only {self._name!r}.",
                param="model",
                code="model_not_found",
            )

    async def _read_body(self, http: HttpRequest) -> Any:
        """The request's JSON, for this model. Raises ApiError."""
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "The request must be JSON, and say so: Content-Type: application/json.")
        data = bytearray()
        async for part in http.stream():
            data += part
            if len(data) > MAX_BODY:
                raise ApiError(413, f"The request is larger than {MAX_BODY} bytes.")
        try:
            body = json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as e:
            raise ApiError(400, f"The request is not valid JSON: {e}.") from e
        if isinstance(body, dict):
            self._check_model(body.get("model"))
        return body

    async def _respond(
        self,
        http: HttpRequest,
        request: Request,
        shape: Shape,
        prompts: Sequence[list[int]],
        generations: Sequence[Generation],
    ) -> Response:
        if len(generations) > self._engine.max_texts:
            raise ApiError(400, f"This server writes at most {self._engine.max_texts} texts at a time.", param="n")
        queue: asyncio.Queue = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            task = self._engine.submit(generations, lambda *event: loop.call_soon_threadsafe(queue.put_nowait, event))
        except Full as e:
            raise ApiError(
                429, "The server is busy and as many requests wait as may: try again in a moment.", code="busy"
            ) from e
        events = _events(queue, len(generations))
        if request.stream:
            return _EventStream(_chunks(events, request, shape, prompts, generations), task)
        try:
            pieces = await _unless_gone(http, _collect(events, len(generations)))
        finally:
            task.cancel()
        choices = [shape.whole(i, p, generations[i].finish_reason) for i, p in enumerate(pieces)]
        return JSONResponse(shape.head | {"choices": choices, "usage": usage(prompts, generations)})


async def _checked(function: Callable, *arguments: Any) -> Any:
    """``function(*arguments)``, in a thread for it may take a while; what the user can mend becomes an ApiError."""
    try:
        return await run_in_threadpool(function, *arguments)
    except TooLong as e:
        raise ApiError(400, _sentence(e), code="context_length_exceeded") from e
    except UserError as e:
        raise ApiError(400, _sentence(e)) from e


def _sentence(e: Exception) -> str:
    text = str(e)
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _generators(request: Request, count: int) -> list[torch.Generator]:
    """Random numbers of each text; the first text's are those of ``torchgpt.generate --seed``."""
    seed = secrets.randbits(32) if request.seed is None else request.seed
    # torch looks at 32 bits; an odd step visits all of them, far from the seeds that people write
    return [torch.Generator().manual_seed((seed + i * 0x9E3779B1) % 2**32) for i in range(count)]


async def _events(queue: asyncio.Queue, count: int) -> Events:
    """What the engine delivers, until all texts are finished."""
    while count:
        number, pieces = await queue.get()
        if isinstance(pieces, Exception):
            raise pieces
        count -= pieces is None
        yield number, pieces


async def _collect(events: Events, count: int) -> list[list[Piece]]:
    texts: list[list[Piece]] = [[] for _ in range(count)]
    async for number, pieces in events:
        texts[number] += pieces or []
    return texts


async def _unless_gone(http: HttpRequest, work: Any) -> Any:
    """The result of ``work``. Raises HTTPException 499, which nobody reads, when the client leaves before."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise HTTPException(499, "The client has left.")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def _chunks(
    events: Events,
    request: Request,
    shape: Shape,
    prompts: Sequence[list[int]],
    generations: Sequence[Generation],
) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    nothing = {"usage": None} if request.include_usage else {}

    def chunk(choices: list[dict[str, Any]], **rest: Any) -> str:
        return f"data: {json.dumps(shape.head | nothing | {'choices': choices} | rest)}\n\n"

    for number in range(len(generations)):
        if choices := shape.first(number):
            yield chunk(choices)
    try:
        async for number, pieces in events:
            if pieces is None:
                yield chunk([shape.last(number, generations[number].finish_reason)])
            for piece in pieces or ():
                yield chunk([shape.part(number, piece)])
    except Exception as e:
        yield f"data: {json.dumps(_internal(e).body())}\n\n"
        return
    if request.include_usage:
        yield chunk([], usage=usage(prompts, generations))
    yield "data: [DONE]\n\n"


def _internal(e: Exception) -> ApiError:
    return ApiError(500, f"The model could not write this text: {e!r}.")


def make_app(writer: Writer, name: str, address: str, engine: Engine, max_new_tokens: int) -> Starlette:
    """The application for a server that listens on the IP ``address``; it stops ``engine`` when it ends."""
    service = Service(writer, name, engine, max_new_tokens)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        engine.stop()

    async def on_api_error(request: HttpRequest, error: ApiError) -> Response:
        return error_response(error)

    async def on_http_error(request: HttpRequest, error: HTTPException) -> Response:
        return error_response(
            ApiError(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}.")
        )

    async def on_gone(request: HttpRequest, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # which nobody reads

    async def on_error(request: HttpRequest, error: Exception) -> Response:
        return error_response(_internal(error))

    routes = [
        *(Route(path, service.page) for path in _PAGE),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.models),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.complete, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, address=address)],
        exception_handlers={
            ApiError: on_api_error,
            HTTPException: on_http_error,
            ClientDisconnect: on_gone,
            Exception: on_error,
        },
        lifespan=lifespan,
    )
