"""The explainer's language model as a deployment: vLLM under `ray.serve.llm`, asked for texts alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.deployment import LLMServer

from rerank_core.explanation.engine import engine_environment, engine_settings, sampling_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ray.serve import Application

    from rerank_core.explanation.engine import EngineConfig
    from serve.args import EngineArgs

MODEL_ID = "explainer"

MAX_QUEUED_REQUESTS = 256
"""Texts that wait for an engine at most; each is given up after a while."""


class TextServer(LLMServer):
    """An engine that takes a prompt and a schema: how it samples is no caller's business."""

    async def write(
        self, prompt: str, schema: Mapping[str, Any], engine: EngineConfig, attempt: int
    ) -> AsyncIterator[str]:
        """Yield the pieces of one text.

        Raises:
            RuntimeError: the engine refused the request.
        """
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        request = ChatCompletionRequest(
            model=MODEL_ID,
            messages=[{"role": "user", "content": prompt}],
            stream=True,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "explanation", "schema": dict(schema)},
            },
            **sampling_settings(engine, attempt=attempt),
        )
        async for batch in await self.chat(request):
            for chunk in batch if isinstance(batch, list) else [batch]:
                if not isinstance(chunk, str):
                    raise RuntimeError(f"the engine refused the request: {chunk}")
                for piece in pieces_of(chunk):
                    yield piece


def pieces_of(chunk: str) -> list[str]:
    """Return what the lines of a streamed chat completion say.

    Raises:
        RuntimeError: one of them is an error.
    """
    pieces = []
    for line in chunk.split("\n"):  # JSON may hold the other line separators
        said = line.removeprefix("data: ").strip()
        if not said or said == "[DONE]":
            continue
        told = json.loads(said)
        if "error" in told:
            raise RuntimeError(f"the engine failed: {told['error']}")
        pieces += [choice["delta"].get("content") or "" for choice in told["choices"]]
    return pieces


def build_text_server(engine: EngineConfig, args: EngineArgs) -> Application:
    """Return the deployment of an engine, on GPUs where `args` gives it some, else on CPUs."""
    on_gpu = args.num_gpus > 0
    settings = engine_settings(engine, on_gpu=on_gpu)
    return build_llm_deployment(
        LLMConfig(
            model_loading_config={"model_id": MODEL_ID, "model_source": str(engine.model)},
            engine_kwargs=settings | {"tensor_parallel_size": max(args.num_gpus, 1)},
            accelerator_config=None if on_gpu else {"kind": "cpu"},
            runtime_env={"env_vars": engine_environment(on_gpu=on_gpu)},
            experimental_configs={"stream_batching_interval_ms": 0},
            deployment_config={
                "max_queued_requests": MAX_QUEUED_REQUESTS,
                "autoscaling_config": {
                    "min_replicas": args.min_replicas,
                    "max_replicas": args.max_replicas,
                    "target_ongoing_requests": args.target_ongoing_requests,
                },
            },
            log_engine_metrics=False,
        ),
        deployment_cls=TextServer,
    )
