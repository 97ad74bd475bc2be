"""What a replica loads before it is ready, which takes seconds of every start: the list stays short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

GATEWAY = """
from serve.app import build_http
from serve.args import ServeArgs
build_http(ServeArgs(artefact=artefact, auth=False), reranker=None, attributors=None)
"""
MODEL = """
import serve.app
from serve.reranker import load_served
from rerank_core.attribution.build import build_attributor
load_served(artefact, long_documents="max_chunk", max_tokens_per_batch=512)
"""
"""A reranker's, and what an attributor loads beside it."""

OF_MODELS = {"torch", "transformers", "safetensors", "scipy", "sklearn", "accelerate"}
OF_OTHER_WORK = {
    *("bm25s", "datasets", "deepspeed", "ir_datasets", "matplotlib", "numba", "peft", "ranx", "sacrebleu"),
    *("sentence_transformers", "shap", "torchvision", "trl", "vllm"),
}
"""What training, evaluation, reports, the explainer or one method of attribution need, and no replica."""


def packages_of(program: str, artefact: Path) -> set[str]:
    """Return the packages that a fresh interpreter has loaded once a program has run."""
    lines = ["import sys", "from pathlib import Path", "artefact = Path(sys.argv[1])", program]
    lines.append("print('loaded', *{name.partition('.')[0] for name in sys.modules})")
    command = [sys.executable, "-c", "\n".join(lines), str(artefact)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0, told.stderr
    return set(told.stdout.splitlines()[-1].split())


def test_a_gateway_loads_nothing_of_models(artefact: Path) -> None:
    loaded = packages_of(GATEWAY, artefact)
    assert {"tokenizers", "fastapi"} <= loaded
    assert loaded.isdisjoint(OF_MODELS | OF_OTHER_WORK)


def test_a_replica_that_holds_the_model_loads_nothing_of_other_work(artefact: Path) -> None:
    loaded = packages_of(MODEL, artefact)
    assert {"torch", "transformers"} <= loaded
    assert loaded.isdisjoint(OF_OTHER_WORK)
