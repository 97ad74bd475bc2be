"""The explainer's language model as a deployment: vLLM under `ray.serve.llm`, sampled in our way alone."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.deployment import LLMServer

from rerank_core.explanation.engine import engine_environment, engine_settings, sampling_settings
from serve.chat import ChatCost, ChatPiece
from serve.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ray.serve import Application

    from rerank_core.explanation.engine import EngineConfig
    from serve.args import EngineArgs
    from serve.chat import ChatTask

MODEL_ID = "explainer"

MAX_QUEUED_REQUESTS = 256
"""Texts that wait for an engine at most; each is given up after a while."""


class TextServer(LLMServer):
    """An engine that takes prompts and conversations: how it samples is no caller's business."""

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
        async for told in self._told(request):
            for choice in told["choices"]:
                yield choice["delta"].get("content") or ""

    async def converse(self, task: ChatTask, engine: EngineConfig) -> AsyncIterator[ChatPiece | ChatCost]:
        """Yield the pieces of one reply, and at last its cost.

        Raises:
            InvalidRequestError: the model's chat format has no place for such messages, or they are longer
                than the model reads; the engine does not tell which.
            RuntimeError: the engine failed.
        """
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        request = ChatCompletionRequest(
            model=MODEL_ID,
            messages=[{"role": role, "content": text} for role, text in task.messages],
            stream=True,
            stream_options={"include_usage": True},
            **sampling_settings(engine, attempt=1) | {"max_tokens": task.max_tokens},
        )
        try:
            async for told in self._told(request):
                for piece in replies_in(told):
                    yield piece
        except EngineError as error:
            if error.code != HTTPStatus.BAD_REQUEST:
                raise
            raise InvalidRequestError(
                "the model's chat format has no place for such messages, or they are longer than it reads",
                code="conversation_refused",
                remedy="send a system message first, if any, then the user's and the assistant's in turn; or"
                " shorter ones",
                param="messages",
            ) from error

    async def _told(self, request: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield what the engine streams as an answer to a chat completion.

        Raises:
            EngineError: it refused the request, or failed.
        """
        async for batch in await self.chat(request):
            for chunk in batch if isinstance(batch, list) else [batch]:
                if not isinstance(chunk, str):
                    raise EngineError(chunk.model_dump()["error"])
                for told in values_in(chunk):
                    yield told


class EngineError(RuntimeError):
    """What an engine answers instead of words; `code` is that of HTTP."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__(f"the engine failed: {told.get('message')}")
        self.code = told.get("code")
        self._told = dict(told)

    def __reduce__(self) -> tuple[Any, ...]:
        """Raised in one process, it arrives in another as it was."""
        return type(self), (self._told,)


def values_in(chunk: str) -> list[dict[str, Any]]:
    """Return what the lines of a streamed chat completion hold.

    Raises:
        EngineError: one of them is an error.
    """
    values = []
    for line in chunk.split("\n"):  # JSON may hold the other line separators
        said = line.removeprefix("data: ").strip()
        if not said or said == "[DONE]":
            continue
        told = json.loads(said)
        if "error" in told:
            raise EngineError(told["error"])
        values.append(told)
    return values


def replies_in(told: Mapping[str, Any]) -> list[ChatPiece | ChatCost]:
    """Return what one value of a streamed chat completion says to whoever chats."""
    found: list[ChatPiece | ChatCost] = [
        ChatPiece(choice["delta"].get("content") or "", choice.get("finish_reason"))
        for choice in told["choices"]
    ]
    usage = told.get("usage")
    if usage:
        found.append(ChatCost(usage["prompt_tokens"], usage["completion_tokens"]))
    return found


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
