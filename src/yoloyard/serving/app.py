"""The routes of the server. The event loop never computes: threads read headers, decode and run the network."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.common.versions import versions
from yoloyard.serving import v2
from yoloyard.serving.batching import Queue, Work
from yoloyard.serving.limits import IMAGE_BYTES, Bodies, size_before_decoding
from yoloyard.serving.metrics import Metrics
from yoloyard.serving.served import Served

HEALTH = "/v2/health/"
PAGE = "/"
# The page loads nothing but images that the user gives to it, and asks only this server.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LEFT = 499  # the status under which a request counts whose client has left


def make_app(models: Mapping[str, Served], places: int, metrics: Metrics, token: bytes | None) -> Starlette:
    """The server of these models as an ASGI application; a queue of `places`.

    `token`: what all but health and the page ask for; the page asks its user for it.
    """
    bodies, queue = Bodies(), Queue(places, metrics)
    converting = asyncio.Lock()  # tensors in JSON take many times their bytes: one request at a time

    def model_named(name: str | None) -> Served:
        if name is None and len(models) > 1:
            raise HTTPException(400, f"say which model, ?model=NAME: {', '.join(models)}")
        if name is not None and name not in models:
            raise HTTPException(404, f"there is no model of this name; there are {', '.join(models)}")
        return models[name or next(iter(models))]

    async def predict(request: Request) -> Response:
        served = model_named(request.query_params.get("model"))
        queue.refuse_if_full()
        async with bodies.read(request, IMAGE_BYTES) as body:
            image, size = await asyncio.to_thread(
                _image_in, body, request.headers.get("content-type", ""), served.model.pixels
            )
            inputs = served.inputs_of(*size)
            kind = (served.name, served.model.input_shape(*size), inputs)
            at_once = max(1, served.max_batch // inputs)
            work = Work(served.name, kind, served.predict, image, at_once, images=inputs)
            return JSONResponse(await queue.result(work, request))

    async def infer(request: Request) -> Response:
        served = model_named(request.path_params["name"])
        queue.refuse_if_full()
        async with bodies.read(request, v2.most_bytes(served)) as body:
            async with converting:
                asked = await asyncio.to_thread(v2.read, body, request.headers.get(v2.LENGTH), served)
            count = len(asked.images)
            work = Work(served.name, object(), lambda items: [served.infer(items[0])], asked.images, images=count)
            outputs = await queue.result(work, request)
            async with converting:
                content, headers = await asyncio.to_thread(v2.write, served, asked, outputs)
            return Response(content, headers=headers)

    async def metadata(request: Request) -> Response:
        return JSONResponse(v2.description(model_named(request.path_params["name"])))

    async def ready(request: Request) -> Response:
        return JSONResponse({"name": model_named(request.path_params["name"]).name, "ready": True})

    async def measured(request: Request) -> Response:
        return Response(await asyncio.to_thread(generate_latest, metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        working = asyncio.create_task(queue.run())
        yield
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working

    page = files("yoloyard.serving").joinpath("page.html").read_bytes()
    page_headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
    server = {"name": "yoloyard", "version": versions()["yoloyard"], "extensions": ["binary_tensor_data"]}
    routes = [
        Route(PAGE, lambda request: Response(page, headers=page_headers, media_type="text/html")),
        Route("/models", _always({"models": list(models)})),
        Route("/predict", predict, methods=["POST"]),
        Route("/metrics", measured),
        Route("/v2", _always(server)),
        Route(f"{HEALTH}live", _always({"live": True})),
        Route(f"{HEALTH}ready", _always({"ready": True})),
        Route("/v2/models/{name}", metadata),
        Route("/v2/models/{name}/ready", ready),
        Route("/v2/models/{name}/infer", infer, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Door, {each.endpoint: each.path for each in routes}, bodies, metrics, token)],
        exception_handlers={HTTPException: _refusal, ClientDisconnect: _gone, Exception: _failure},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # it would send clients to whatever host they have named
    return app


class _Door:
    """Lets in who has the token, and counts every request until its client has taken the answer."""

    def __init__(
        self, app: ASGIApp, paths: Mapping[Any, str], bodies: Bodies, metrics: Metrics, token: bytes | None
    ) -> None:
        self._app, self._paths, self._bodies, self._metrics = app, paths, bodies, metrics
        self._expected = None if token is None else b"bearer " + token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            with self._bodies.held(len(message.get("body", b""))):
                await send({**message, "more_body": True})
                if message["type"] == "http.response.body":
                    await send({"type": "http.response.body"})  # which waits until the client has taken the first

        try:
            if self._is_welcome(scope):
                await self._app(scope, receive, noted)
            else:
                headers = {"WWW-Authenticate": "Bearer"}
                line = "say the token: the header Authorization: Bearer TOKEN"
                await JSONResponse({"error": line}, 401, headers)(scope, receive, noted)
        except asyncio.CancelledError:  # a second Ctrl-C
            await JSONResponse({"error": "the server was ended"}, 503)(scope, receive, noted)
        finally:
            path = self._paths.get(scope.get("endpoint"), "other")
            self._metrics.request_seconds.labels(path, status).observe(time.perf_counter() - started)

    def _is_welcome(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        is_free = self._expected is None or scope["path"].startswith(HEALTH) or scope["path"] == PAGE
        return is_free or hmac.compare_digest(scheme.lower() + b" " + token.strip(), self._expected or b"")


def _image_in(body: bytes, content_type: str, pixels: PixelSpec) -> tuple[bytes, tuple[int, int]]:
    """The image file in a body, to become `pixels`, and its height and width, upright. Raises HTTPException."""
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        body = _file_in(body, options.get(b"boundary", b""))
    elif kind == b"application/json" or kind.startswith(b"text/"):
        raise HTTPException(415, "send the bytes of an image file, or a form with it in the field `file`")
    return body, size_before_decoding(body, pixels)


def _file_in(body: bytes, boundary: bytes) -> bytes:
    """What the field `file` of a form holds."""
    found: list[bytes] = []

    def take(file: Any) -> None:
        if file.field_name == b"file":
            file.file_object.seek(0)
            found.append(file.file_object.read())
        file.close()

    try:
        limits = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # never a file on disk
        form = FormParser("multipart/form-data", None, take, boundary=boundary, config=limits)
        form.write(body)
        form.finalize()
    except FormParserError as error:
        raise HTTPException(400, "the form is damaged or cut off") from error
    if len(found) != 1:
        raise HTTPException(400, "the form must have one file, in the field `file`")
    return found[0]


def _always(answer: Mapping[str, Any]) -> Callable[[Request], Response]:
    return lambda request: Response(json.dumps(answer), media_type="application/json")


def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=LEFT)


def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its output says why"}, 500)
