"""The application with a scripted explainer, for the tests that share one real Ray Serve."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from ray import serve

from rerank_core.explanation.engine import EngineConfig
from rerank_core.testing import grounded_answer
from serve.app import wired
from serve.chat import ChatCost, ChatPiece
from serve.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ray.serve import Application

    from serve.args import ServeArgs
    from serve.chat import ChatTask

QUERY = "sea ice thickness"
TEXTS = [f"{subject} {number}" for number in range(6) for subject in ("sea ice", "river ice", "sand dunes")]


class ScriptedTextServer:
    """What stands for a vLLM engine: honest, unless a word of the prompt tells it to fail in some way."""

    async def write(
        self, prompt: str, schema: Mapping[str, Any], engine: EngineConfig, attempt: int
    ) -> AsyncIterator[str]:
        if "please crash" in prompt:
            os._exit(1)
        if "please raise" in prompt:
            raise ValueError("the engine is out of memory")
        if "please sleep" in prompt:
            await asyncio.sleep(60)
        text = "no JSON" if "please babble" in prompt else grounded_answer(prompt, schema)
        for start in range(0, len(text), 9):
            yield text[start : start + 9]

    async def converse(self, task: ChatTask, engine: EngineConfig) -> AsyncIterator[ChatPiece | ChatCost]:
        _, text = task.messages[-1]
        if "please raise" in text:
            raise RuntimeError("the engine is out of memory")
        if "please refuse" in text:
            raise InvalidRequestError("no", code="conversation_refused", remedy="reorder")
        for word in text.split():
            yield ChatPiece(f"{word} ", None)
        yield ChatPiece("", "stop")
        yield ChatCost(4, 3)


def scripted_app(args: ServeArgs) -> Application:
    """Return the application of some arguments, whose texts the scripted engine writes."""
    engine = EngineConfig(
        model=args.artefact, max_model_tokens=2048, max_new_tokens=160, temperature=0.0, seed=0
    )
    scripted = serve.deployment(name="text_server", ray_actor_options={"num_cpus": 0.1})(ScriptedTextServer)
    return wired(args, engine=engine, text_server=scripted.bind())
