"""The HTTP API over a gateway: paths, bodies, errors, and the OpenAPI document."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Body, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.staticfiles import StaticFiles

from rerank_core import __version__
from serve.bodies import parse_body
from serve.errors import ApiError, InvalidRequestError, UnprocessableError, internal_fault
from serve.schemas import (
    ChatRequest,
    ChatResponse,
    ErrorResponse,
    ExplainRequest,
    Health,
    ModelList,
    RerankRequest,
    RerankResponse,
    ScoreRequest,
    ScoreResponse,
    TeiRerankRequest,
    TeiResult,
    Version,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from pydantic import BaseModel
    from starlette.responses import Response

    from serve.chat import ChatService
    from serve.gateway import Gateway
    from serve.metrics import RequestMetrics
    from serve.schemas import ChatChunk

logger = logging.getLogger("whyrank.serve")

PAGE = Path(__file__).parent / "page"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
RERANK_PATHS = ("/v1/rerank", "/rerank", "/v2/rerank")
SCORE_PATHS = ("/v1/score", "/score")

MEANING = {
    400: "The request cannot be meant.",
    401: "No key, or none that is known.",
    404: "Another model than the served one, or chat where it is not enabled.",
    408: "The body or the answer took too long.",
    413: "The request is larger than a limit.",
    422: "A field has another type than its schema says.",
    429: "The key, or the queue of work, is at its limit; see Retry-After.",
    500: "The model gave no number.",
    503: "No replica can answer now; see Retry-After.",
}

RERANK_EXAMPLE = {
    "query": "sea ice thickness from altimetry",
    "documents": ["River ice dates.", {"text": "Ice freeboard from radar, 2011-2020.", "id": "d1"}],
    "top_n": 2,
}
SCORE_EXAMPLE = {
    "queries": "sea ice thickness",
    "documents": ["Ice freeboard from radar.", "River ice dates."],
}
EXPLAIN_EXAMPLE = RERANK_EXAMPLE | {"explain": {"top_k": 1, "contrast": True}, "budget": 200}
RANK_EXAMPLE = RERANK_EXAMPLE | {"explain": {"top_k": 2}, "target": "rank"}
MARGIN_EXAMPLE = RERANK_EXAMPLE | {"explain": {"top_k": 2}, "target": "margin:0"}
EVENT_STREAM = "text/event-stream"
CHAT_EXAMPLE = {"messages": [{"role": "user", "content": "What is sea ice freeboard?"}], "max_tokens": 40}
TEI_EXAMPLE = {"query": "sea ice thickness", "texts": ["Ice freeboard from radar.", "River ice dates."]}


class _StrictRequest(Request):
    """A request whose JSON was read by `parse_body`."""

    def __init__(self, request: Request, raw: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._raw = raw
        self._value = parse_body(raw) if raw else None

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:
        return self._value


class _StrictRoute(APIRoute):
    """A route whose bodies are read strictly, before FastAPI would turn any refusal into its own."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def read_strictly(request: Request) -> Response:
            return await handler(_StrictRequest(request, await request.body()))

        return read_strictly


def build_api(gateway: Gateway, chat: ChatService, metrics: RequestMetrics) -> FastAPI:
    """Return the API; it knows nothing of keys and sizes, which a `Guard` around it checks."""
    api = FastAPI(
        title="Whyrank",
        version=__version__,
        summary="Re-ranking by a language model that keeps one output neuron.",
        docs_url=None,  # it would load other people's scripts beside the page's key
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False))],  # says in the document what the guard checks
    )
    api.router.route_class = _StrictRoute
    api.add_exception_handler(ApiError, _answer_api_error)
    api.add_exception_handler(RequestValidationError, _answer_invalid)
    api.add_exception_handler(StarletteHTTPException, _answer_http_error)
    api.add_exception_handler(Exception, _answer_fault)
    api.mount("/page", StaticFiles(directory=PAGE), name="page")
    _add_ranking(api, gateway)
    _add_chat(api, chat)
    _add_operation(api, gateway, chat, metrics)
    metrics.know_routes({route.path for route in api.routes if isinstance(route, APIRoute)})
    return api


def _add_ranking(api: FastAPI, gateway: Gateway) -> None:
    async def rerank(
        request: Request, body: Annotated[RerankRequest, Body(openapi_examples=_example(RERANK_EXAMPLE))]
    ) -> Any:
        """Rank documents for a query, best first: the body of Cohere's, Jina's and vLLM's clients.

        With `Accept: text/event-stream` the ranking comes first, and explanations as they are found.
        """
        return await _plain_or_streamed(gateway, body, request)

    async def explain(
        request: Request, body: Annotated[ExplainRequest, Body(openapi_examples=_explain_examples())]
    ) -> Any:
        """Rank documents, and explain the first ones in words and in a verified text."""
        options = body.explain.model_copy(update={"text": True})
        return await _plain_or_streamed(gateway, body.model_copy(update={"explain": options}), request)

    async def attribute(
        request: Request, body: Annotated[ExplainRequest, Body(openapi_examples=_explain_examples())]
    ) -> Any:
        """Rank documents, and find the words that caused the scores of the first ones."""
        options = body.explain.model_copy(update={"text": False, "attributions": True})
        return await _plain_or_streamed(gateway, body.model_copy(update={"explain": options}), request)

    async def score(
        body: Annotated[ScoreRequest, Body(openapi_examples=_example(SCORE_EXAMPLE))],
    ) -> ScoreResponse:
        """Score pairs: one query with one or many texts, or as many queries as texts."""
        return await gateway.score(body)

    async def rerank_tei(
        body: Annotated[TeiRerankRequest, Body(openapi_examples=_example(TEI_EXAMPLE))],
    ) -> list[TeiResult]:
        """Rank texts for a query: the body of text-embeddings-inference's clients."""
        return await gateway.rerank_tei(body)

    for paths, endpoint, answer in (
        (RERANK_PATHS, rerank, RerankResponse),
        (("/v1/explain",), explain, RerankResponse),
        (("/v1/attribute",), attribute, RerankResponse),
        (SCORE_PATHS, score, ScoreResponse),
        (("/tei/rerank",), rerank_tei, list[TeiResult]),
    ):
        for path in paths:
            api.add_api_route(
                path,
                endpoint,
                methods=["POST"],
                response_model=answer,
                response_model_exclude_none=True,
                responses=_errors(*MEANING),
                operation_id=f"{endpoint.__name__}{path.replace('/', '_')}",
            )


async def _plain_or_streamed(gateway: Gateway, body: RerankRequest, request: Request) -> Any:
    """Return the response, or a stream of events where the client asks for one."""
    if EVENT_STREAM not in request.headers.get("accept", ""):
        return await gateway.rerank(body)
    events = gateway.rerank_events(body)
    first = await anext(events)  # an error before the ranking is answered as any other
    return StreamingResponse(
        _sse(first, events), media_type=EVENT_STREAM, headers={"Cache-Control": "no-store"}
    )


async def _sse(
    first: tuple[str, BaseModel], events: AsyncIterator[tuple[str, BaseModel]]
) -> AsyncIterator[str]:
    """Yield events in the format of server-sent events; an error ends them, as an event of its own."""
    try:
        yield _event(*first)
        async for name, value in events:
            yield _event(name, value)
    except ApiError as error:
        yield f"event: error\ndata: {json.dumps(error.body)}\n\n"
    except Exception:  # the client has to know that nothing more comes
        logger.exception("a stream failed")
        yield f"event: error\ndata: {json.dumps(internal_fault().body)}\n\n"


def _event(name: str, value: BaseModel) -> str:
    return f"event: {name}\ndata: {value.model_dump_json(exclude_none=True)}\n\n"


def _add_chat(api: FastAPI, chat: ChatService) -> None:
    async def complete(
        body: Annotated[ChatRequest, Body(openapi_examples=_example(CHAT_EXAMPLE))],
    ) -> Any:
        """Continue a conversation with the explainer's language model, where the server was started so.

        With `stream: true` the reply comes as server-sent events, and `data: [DONE]` ends it.
        """
        if not body.stream:
            return await chat.complete(body)
        chunks = chat.chunks(body)
        first = await anext(chunks)  # an error before the first words is answered as any other
        return StreamingResponse(
            _sse_of_chat(first, chunks), media_type=EVENT_STREAM, headers={"Cache-Control": "no-store"}
        )

    api.add_api_route(
        "/v1/chat/completions",
        complete,
        methods=["POST"],
        response_model=ChatResponse,
        responses=_errors(*MEANING),
        operation_id="chat_v1_chat_completions",
    )


async def _sse_of_chat(first: ChatChunk, chunks: AsyncIterator[ChatChunk]) -> AsyncIterator[str]:
    """Yield chunks as OpenAI's clients read them; an error ends them, as the last one."""
    try:
        yield f"data: {first.model_dump_json()}\n\n"
        async for chunk in chunks:
            yield f"data: {chunk.model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body)}\n\n"
    except Exception:  # the client has to know that nothing more comes
        logger.exception("a stream failed")
        yield f"data: {json.dumps(internal_fault().body)}\n\n"


def _add_operation(api: FastAPI, gateway: Gateway, chat: ChatService, metrics: RequestMetrics) -> None:
    async def models() -> ModelList:
        """The served model, its digest, and the scales that its scores can have; who chats, if anybody."""
        return ModelList(data=[await gateway.describe(), *chat.models()])

    async def health() -> Health:
        """Ready, or 503: every golden pair of the artefact was scored again."""
        return await gateway.health()

    async def page() -> FileResponse:
        """The page: no data, and no script or style of anybody else's."""
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})

    async def version() -> Version:
        """The version of Whyrank."""
        return Version(version=__version__)

    async def prometheus() -> PlainTextResponse:
        """Counters of this gateway replica."""
        return PlainTextResponse(metrics.text())

    api.add_api_route("/", page, include_in_schema=False)
    api.add_api_route("/v1/models", models, responses=_errors(401, 408, 429, 500, 503))
    api.add_api_route("/health", health, responses=_errors(500, 503))
    api.add_api_route("/version", version, responses=_errors(401, 408, 429))
    api.add_api_route(
        "/metrics", prometheus, response_class=PlainTextResponse, responses=_errors(401, 408, 429)
    )


def _example(value: dict[str, Any]) -> dict[str, Any]:
    return {"small": {"value": value}}


def _explain_examples() -> dict[str, Any]:
    return {
        **_example(EXPLAIN_EXAMPLE),
        "margin": {"value": MARGIN_EXAMPLE},
        "rank_flips": {"value": RANK_EXAMPLE},
    }


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse, "description": MEANING[status]} for status in statuses}


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _answer_invalid(_: Request, error: Exception) -> Response:
    """Name the first field that is wrong; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or "body"
    refused = UnprocessableError(
        f"{place}: {first['msg']}",
        code=str(first["type"]),
        remedy="see the schema of this route in /openapi.json",
        param=place,
    )
    return JSONResponse(refused.body, status_code=refused.status)


async def _answer_fault(_: Request, error: Exception) -> Response:
    """Answer for a fault of ours; the guard logs what it was."""
    fault = internal_fault()
    return JSONResponse(fault.body, status_code=fault.status)


async def _answer_http_error(_: Request, error: Exception) -> Response:
    """Answer for a path or a method that is none."""
    assert isinstance(error, StarletteHTTPException)
    refused = InvalidRequestError(
        str(error.detail), code=f"http_{error.status_code}", remedy="see the routes in /openapi.json"
    )
    return JSONResponse(refused.body, status_code=error.status_code, headers=error.headers)
