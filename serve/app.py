"""The application: plain classes wrapped as Ray Serve deployments and wired together, here and nowhere else.

serve run serve.app:build_app artefact=runs/minilm/dpo keys=keys.json
serve deploy serve/config.yaml
"""

from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from rerank_core.explanation.engine import EngineConfig
from serve.admission import CallerLimits, TokenAdmission
from serve.args import ReplicaArgs, ServeArgs
from serve.attributor import AttributorService
from serve.auth import KeyRing
from serve.breaker import CircuitBreaker
from serve.chat import FORMAT_TOKENS, ChatLimits, ChatModel, ChatService
from serve.explainer import ExplainerService, PromptVocabulary, Writer
from serve.explanations import Attributors
from serve.first_stage import FirstStage, Retrievers
from serve.gateway import Explaining, Gateway, GatewayLimits, RerankerService
from serve.guard import BodyLimits, Guard
from serve.handles import AttributorHandle, ChatHandle, RerankerHandle, RetrieverHandle, WriterHandle
from serve.lists import TokenCounter
from serve.metrics import RequestMetrics
from serve.reranker import Reranker, load_served
from serve.retriever import RetrieverService
from serve.routes import build_api

# No `from __future__ import annotations` here: Ray Serve reads the class of `build_app`'s argument from it.

MAX_ONGOING_REQUESTS = 1024
"""Calls that a replica takes at a time: tokens bound its work, so this only must not be what does."""

MAX_QUEUED_REQUESTS = 2048
"""Calls that wait for a replica at most."""

MAX_RETRIEVALS = 32
"""Queries that a retriever takes at a time: no count of tokens bounds its work."""

MAX_QUEUED_RETRIEVALS = 128

MAX_FAILURES = 5
"""Texts that may fail in a row before the explainer is left alone for `PAUSE_S`."""

PAUSE_S = 30.0

HEALTH_CHECK_PERIOD_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 30.0
GRACEFUL_SHUTDOWN_S = 20.0


def build_app(args: ServeArgs) -> Application:
    """Return the application that `serve run` and `whyrank serve` start."""
    if args.explainer is None:
        return wired(args, engine=None, text_server=None)
    from serve.llm import build_text_server  # loads vLLM

    engine = EngineConfig(
        model=explainer_folder(args.explainer, args.explainer_lora),
        max_model_tokens=args.max_model_tokens,
        max_new_tokens=args.max_new_tokens,
        temperature=0.0,
        seed=0,
    )
    return wired(args, engine=engine, text_server=build_text_server(engine, args.text_server))


def explainer_folder(name: str, lora: Path | None) -> Path:
    """Return the model folder that the explainer's engine loads: with an adapter, a merged copy.

    Raises:
        ConfigError: no model goes by that name.
        ArtefactError: the model or the adapter is broken, or could run code.
    """
    from rerank_core.models.pretrained import resolve_model

    model = resolve_model(name).resolve()
    if lora is None:
        return model
    from rerank_core.models.merged import merge_lora  # loads torch

    return merge_lora(model, lora)


def wired(args: ServeArgs, *, engine: EngineConfig | None, text_server: Application | None) -> Application:
    """Return the application around a deployment that writes texts; without one a template writes them."""
    reranker = serve.deployment(name="reranker", **_options(args.reranker))(RerankerReplica).bind(args)
    attributor = serve.deployment(name="attributor", **_options(args.attributor))(AttributorReplica).bind(
        args
    )
    retriever = None
    if args.corpus is not None:
        options = _options(args.retriever) | {
            "max_ongoing_requests": MAX_RETRIEVALS,
            "max_queued_requests": MAX_QUEUED_RETRIEVALS,
        }
        retriever = serve.deployment(name="retriever", **options)(RetrieverReplica).bind(args.corpus)
    ingress = serve.ingress()(GatewayReplica)
    return serve.deployment(name="gateway", **_options(args.gateway))(ingress).bind(
        args, engine, reranker, attributor, text_server, retriever
    )


def build_http(  # noqa: PLR0913 - one argument per part
    args: ServeArgs,
    *,
    reranker: RerankerService,
    attributors: Attributors,
    engine: EngineConfig | None = None,
    writer: Writer | None = None,
    retrievers: Retrievers | None = None,
    chat_model: ChatModel | None = None,
) -> ASGIApp:
    """Return the gateway as an ASGI application, wherever its services run."""
    admission = TokenAdmission(args.max_pending_tokens)
    attribution = TokenAdmission(args.max_pending_attribution_tokens)
    conversations = TokenAdmission(args.max_pending_chat_tokens)
    vocabulary = PromptVocabulary(engine.model) if engine else None
    gateway = Gateway(
        reranker,
        name=args.model_name,
        counter=TokenCounter(args.artefact),
        admission=admission,
        limits=GatewayLimits(max_documents=args.max_documents, max_tokens_per_task=args.max_tokens_per_batch),
        explaining=Explaining(
            attributors=attributors,
            explainers=_explainer(args, vocabulary, writer),
            admission=attribution,
            max_results=args.max_explained,
            max_evals=args.max_evals,
            deadline_s=args.attribution_timeout_s,
        ),
        first_stage=FirstStage(
            retrievers, max_candidates=args.max_documents, max_characters=args.max_body_bytes
        ),
    )
    chat = ChatService(
        chat_model,
        name=args.explainer_name,
        special_tokens=vocabulary.special_tokens if vocabulary else (),
        num_tokens=vocabulary.num_tokens if vocabulary else len,
        admission=conversations,
        limits=ChatLimits(
            max_model_tokens=args.max_model_tokens,
            max_new_tokens=args.max_new_tokens,
            timeout_s=args.explanation_timeout_s,
        ),
    )
    metrics = RequestMetrics(
        num_pending_tokens=lambda: admission.num_pending,
        num_pending_attribution_tokens=lambda: attribution.num_pending,
        num_pending_chat_tokens=lambda: conversations.num_pending,
    )
    return Guard(
        build_api(gateway, chat, metrics),
        keys=KeyRing(args.keys) if args.keys else None,
        callers=CallerLimits(
            requests_per_minute=args.requests_per_minute, max_concurrent=args.max_concurrent_requests
        ),
        limits=BodyLimits(
            max_bytes=args.max_body_bytes,
            receive_timeout_s=args.receive_timeout_s,
            answer_timeout_s=args.answer_timeout_s,
        ),
        metrics=metrics,
    )


def _explainer(
    args: ServeArgs, vocabulary: PromptVocabulary | None, writer: Writer | None
) -> ExplainerService:
    return ExplainerService(
        writer,
        name=args.explainer_name,
        special_tokens=vocabulary.special_tokens if vocabulary else (),
        num_tokens=vocabulary.num_tokens if vocabulary else len,
        max_prompt_tokens=args.max_model_tokens - args.max_new_tokens - FORMAT_TOKENS,
        timeout_s=args.explanation_timeout_s,
        breaker=CircuitBreaker(max_failures=MAX_FAILURES, pause_s=PAUSE_S),
    )


class RerankerReplica(Reranker):
    """A replica that holds the model; it is ready once the artefact's golden pairs have their scores."""

    def __init__(self, args: ServeArgs) -> None:
        scorer, card = load_served(
            args.artefact,
            long_documents=args.long_documents,
            max_tokens_per_batch=args.max_tokens_per_batch,
        )
        super().__init__(scorer, card, max_tokens_per_batch=args.max_tokens_per_batch)


class AttributorReplica(AttributorService):
    """A replica that holds the model to attribute its scores."""

    def __init__(self, args: ServeArgs) -> None:
        scorer, card = load_served(
            args.artefact,
            long_documents=args.long_documents,
            max_tokens_per_batch=args.max_tokens_per_batch,
        )
        from rerank_core.attribution.build import (
            build_attributor,  # loads torch, which a gateway does without
        )
        from rerank_core.attribution.document_deletion import document_deletion

        super().__init__(
            partial(build_attributor, scorer), partial(document_deletion, scorer), digest=card.digest
        )


class RetrieverReplica(RetrieverService):
    """A replica that holds the index of a corpus; it needs no torch."""

    def __init__(self, corpus: Path) -> None:
        from rerank_core.data.loading import load_corpus  # loads what only a retriever needs
        from rerank_core.retrieval.bm25 import Bm25Retriever

        super().__init__(Bm25Retriever(load_corpus(corpus)))


class GatewayReplica:
    """A replica that speaks HTTP; Ray Serve asks it for the application once it is made."""

    def __init__(  # noqa: PLR0913 - one argument per part
        self,
        args: ServeArgs,
        engine: EngineConfig | None,
        reranker: DeploymentHandle[Any],
        attributor: DeploymentHandle[Any],
        text_server: DeploymentHandle[Any] | None,
        retriever: DeploymentHandle[Any] | None,
    ) -> None:
        self._args = args
        self._engine = engine
        self._reranker = RerankerHandle(reranker)
        self._attributor = AttributorHandle(attributor)
        self._writer = WriterHandle(text_server, engine) if text_server and engine else None
        self._chat = ChatHandle(text_server, engine) if text_server and engine and args.chat else None
        self._retriever = RetrieverHandle(retriever) if retriever else None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_http(
            self._args,
            reranker=self._reranker,
            attributors=self._attributor,
            engine=self._engine,
            writer=self._writer,
            retrievers=self._retriever,
            chat_model=self._chat,
        )


def _options(args: ReplicaArgs) -> dict[str, Any]:
    """Return the settings of a deployment."""
    return {
        "autoscaling_config": {
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": args.target_ongoing_requests,
        },
        "ray_actor_options": {"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        "max_surge_percent": args.surge_percent,
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "max_queued_requests": MAX_QUEUED_REQUESTS,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_S,
    }
