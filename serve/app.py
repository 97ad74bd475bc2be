"""The application: plain classes wrapped as Ray Serve deployments and wired together, here and nowhere else.

serve run serve.app:build_app artefact=runs/minilm/dpo keys=keys.json
serve deploy serve/config.yaml
"""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve.admission import CallerLimits, TokenAdmission
from serve.args import ReplicaArgs, ServeArgs
from serve.auth import KeyRing
from serve.gateway import Gateway, GatewayLimits, RerankerService
from serve.guard import BodyLimits, Guard
from serve.handles import RerankerHandle
from serve.lists import TokenCounter
from serve.metrics import RequestMetrics
from serve.reranker import Reranker, load_served
from serve.routes import build_api

# No `from __future__ import annotations` here: Ray Serve reads the class of `build_app`'s argument from it.

MAX_ONGOING_REQUESTS = 1024
"""Calls that a replica takes at a time: tokens bound its work, so this only must not be what does."""

MAX_QUEUED_REQUESTS = 2048
"""Calls that wait for a replica at most."""

HEALTH_CHECK_PERIOD_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 30.0
GRACEFUL_SHUTDOWN_S = 20.0


def build_app(args: ServeArgs) -> Application:
    """Return the application that `serve run` and `whyrank serve` start."""
    reranker = serve.deployment(name="reranker", **_options(args.reranker))(RerankerReplica).bind(args)
    ingress = serve.ingress()(GatewayReplica)
    return serve.deployment(name="gateway", **_options(args.gateway))(ingress).bind(args, reranker)


def build_http(args: ServeArgs, reranker: RerankerService) -> ASGIApp:
    """Return the gateway as an ASGI application, whatever its reranker is."""
    admission = TokenAdmission(args.max_pending_tokens)
    gateway = Gateway(
        reranker,
        name=args.model_name,
        counter=TokenCounter(args.artefact),
        admission=admission,
        limits=GatewayLimits(max_documents=args.max_documents, max_tokens_per_task=args.max_tokens_per_batch),
    )
    metrics = RequestMetrics(num_pending_tokens=lambda: admission.num_pending)
    return Guard(
        build_api(gateway, metrics),
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


class RerankerReplica(Reranker):
    """A replica that holds the model; it is ready once the artefact's golden pairs have their scores."""

    def __init__(self, args: ServeArgs) -> None:
        scorer, card = load_served(
            args.artefact,
            long_documents=args.long_documents,
            max_tokens_per_batch=args.max_tokens_per_batch,
        )
        super().__init__(scorer, card, max_tokens_per_batch=args.max_tokens_per_batch)


class GatewayReplica:
    """A replica that speaks HTTP; Ray Serve asks it for the application once it is made."""

    def __init__(self, args: ServeArgs, reranker: DeploymentHandle[Any]) -> None:
        self._args = args
        self._reranker = RerankerHandle(reranker)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_http(self._args, self._reranker)


def _options(args: ReplicaArgs) -> dict[str, Any]:
    """Return the settings of a deployment."""
    return {
        "autoscaling_config": {
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": args.target_ongoing_requests,
        },
        "ray_actor_options": {"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "max_queued_requests": MAX_QUEUED_REQUESTS,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_S,
    }
