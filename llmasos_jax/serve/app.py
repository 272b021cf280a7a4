"""The routes."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response, StreamingResponse

from llmasos_jax import __version__
from llmasos_jax.generate.sampling import MOST_BIASED
from llmasos_jax.serve import bodies
from llmasos_jax.serve.answers import Answerer
from llmasos_jax.serve.asks import Job, chat_job, completion_job
from llmasos_jax.serve.failures import add_handlers
from llmasos_jax.serve.gates import Gates
from llmasos_jax.serve.page.chat import chat_page
from llmasos_jax.serve.service import Service
from llmasos_jax.serve.texts import Texts

FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": bodies.ErrorBody, "description": "The request is wrong; the message says how"},
    401: {"model": bodies.ErrorBody, "description": "No API key, or one that is not known"},
    404: {"model": bodies.ErrorBody, "description": "The server has no such model"},
    413: {"model": bodies.ErrorBody, "description": "The body is too large"},
    429: {"model": bodies.ErrorBody, "description": "Too many texts wait; try again"},
    500: {"model": bodies.ErrorBody, "description": "The server failed"},
    501: {"model": bodies.ErrorBody, "description": "A package that this needs is not installed"},
    503: {"model": bodies.ErrorBody, "description": "The server is being stopped"},
    504: {"model": bodies.ErrorBody, "description": "It took too long"},
}


def make_app(service: Service) -> FastAPI:
    """The application of a server.

    Args:
      service: what it serves.
    """
    app = FastAPI(
        title="llmasos",
        version=__version__,
        description=f"OpenAI-compatible: {service.options.model_name}",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(
        Gates,
        max_body_bytes=service.options.max_body_bytes,
        api_keys=service.options.api_keys,
    )
    add_handlers(app)
    _add_texts(app, service)
    _add_embeddings(app, service)
    _add_models(app, service)
    _add_state(app, service)
    app.openapi = lambda: _description(app, service)  # pyright: ignore[reportAttributeAccessIssue]
    return app


def _add_texts(app: FastAPI, service: Service) -> None:
    stream = {200: {"content": {"text/event-stream": {}}, "description": "The text, or its events"}}
    options: dict[str, Any] = {"responses": {**FAILURES, **stream}, "tags": ["texts"]}

    @app.post("/v1/completions", response_model=bodies.Completion, **options)
    async def completions(body: bodies.CompletionRequest, request: Request) -> Response:
        """Goes on with a text."""
        service.require_model(body.model)
        make = lambda: completion_job(body, service.model, service.context, service.options)
        return await _write(service, request, await asyncio.to_thread(make), is_chat=False)

    @app.post("/v1/chat/completions", response_model=bodies.ChatCompletion, **options)
    async def chat(body: bodies.ChatRequest, request: Request) -> Response:
        """Answers a conversation."""
        service.require_model(body.model)
        make = lambda: chat_job(body, service.model, service.context, service.options)
        return await _write(service, request, await asyncio.to_thread(make), is_chat=True)


async def _write(service: Service, request: Request, job: Job, *, is_chat: bool) -> Response:
    """Writes the texts of a request, until they end or the client goes."""
    answerer = Answerer(job, service.options.model_name, is_chat, service.decode)
    texts = Texts(service.engine, job.asks, service.options.timeout_s, service.metrics)
    if job.streams:
        texts.start()  # what is refused is refused by its status, not in the middle

        async def events() -> AsyncIterator[str]:
            with texts:
                async for event in answerer.stream(texts):
                    yield event

        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)
    texts.start()
    with texts:
        writing = asyncio.ensure_future(answerer.whole(texts))
        leaving = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                return Response(status_code=499)  # nobody reads it
            return JSONResponse(await writing)
        finally:
            writing.cancel()
            leaving.cancel()


async def _gone(request: Request) -> None:
    """Waits until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_embeddings(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/embeddings", response_model=bodies.Embeddings, responses=FAILURES, tags=["texts"]
    )
    async def embeddings(body: bodies.EmbeddingRequest) -> Response:
        """One vector for each text."""
        service.require_embedder(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors, num_tokens = await asyncio.to_thread(service.embed, texts)
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(v, body.encoding_format)}
            for i, v in enumerate(vectors)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


def _encoded(vector: np.ndarray, form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(x) for x in vector]


def _add_models(app: FastAPI, service: Service) -> None:
    failures: dict[int | str, dict[str, Any]] = {s: FAILURES[s] for s in (400, 401, 404)}
    created = int(time.time())

    @app.get("/v1/models", response_model=bodies.ModelList, responses=failures, tags=["models"])
    async def models() -> Any:
        """The models that are served."""
        return {"data": [{"id": name, "created": created} for name in service.names]}

    @app.get(
        "/v1/models/{model:path}",
        response_model=bodies.ModelCard,
        responses=failures,
        tags=["models"],
    )
    async def one_model(model: str) -> Any:
        """One of them."""
        if model not in service.names:
            raise service.unknown(model)
        return {"id": model, "created": created}


def _add_state(app: FastAPI, service: Service) -> None:
    down: dict[int | str, dict[str, Any]] = {
        503: {"model": bodies.Health, "description": "No request is taken"}
    }

    @app.get("/health", response_model=bodies.Health, responses=down, tags=["state"])
    async def health() -> Response:
        """Whether requests are taken."""
        status = service.status
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get(
        "/metrics",
        tags=["state"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "In Prometheus's format"}},
    )
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        found = chat_page()
        return Response(found.html, headers=found.headers)

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Response:
        start_s = time.perf_counter()
        response = await call_next(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")
        service.metrics.requests.labels(path, str(response.status_code)).inc()
        service.metrics.request_s.labels(path).observe(time.perf_counter() - start_s)
        return response


def _description(app: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI description, of what this server takes: its own model names and limits."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # wrong bodies are answered with 400
        parts = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            parts.pop(name, None)
        writers = [service.options.model_name] if service.writes else []
        for name in ("CompletionRequest", "ChatRequest"):
            _narrow(parts[name]["properties"], service, writers)
        parts["EmbeddingRequest"]["properties"]["model"]["enum"] = service.embedders
        if service.options.api_keys:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, operations in schema["paths"].items():
                if path.startswith("/v1/"):
                    for operation in operations.values():
                        operation["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _narrow(fields: dict[str, Any], service: Service, names: list[str]) -> None:
    """What the types do not say: names, batch sizes, ids and lengths of this server's model."""
    fields["model"]["enum"] = names
    if not service.writes:
        return
    fields["batch_size"] = {"enum": [None, *service.engine.sizes.batch_sizes]}
    _bound_ids(fields.get("prompt"), service.model.config.vocab_size - 1)
    for kind in fields["logit_bias"]["anyOf"]:
        if kind["type"] == "object":
            kind |= {"propertyNames": {"pattern": "^[0-9]{1,9}$"}, "maxProperties": MOST_BIASED}
    for name in ("max_tokens", "max_completion_tokens"):
        if name in fields:
            for kind in fields[name]["anyOf"]:
                if kind.get("type") == "integer":
                    kind["maximum"] = min(
                        service.options.max_tokens or service.context, service.context
                    )


def _bound_ids(kind: Any, most: int) -> None:
    """Sets the largest id wherever a schema has integers."""
    parts = kind.values() if isinstance(kind, dict) else kind if isinstance(kind, list) else ()
    if isinstance(kind, dict) and kind.get("type") == "integer":
        kind.pop("exclusiveMaximum", None)
        kind["maximum"] = most
    for part in parts:
        _bound_ids(part, most)
