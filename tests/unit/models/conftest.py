"""Tiny models on disk, made once."""

from pathlib import Path

import pytest

from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.models.tiny import save_tiny_causal, save_tiny_encoder

TEXTS = (
    "daily sea surface temperature of the north sea",
    "monthly river discharge of the danube at vienna",
    "snow depth on arctic sea ice from ultrasonic sounders",
    "relevance of a document to a query",
)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    save_tiny_encoder(folder, TEXTS, seed=0)
    return folder


@pytest.fixture(scope="session")
def causal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    save_tiny_causal(folder, TEXTS, seed=0)
    return folder


@pytest.fixture(params=["encoder", "causal"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{request.param}_folder")
    return path


@pytest.fixture
def scorer(folder: Path) -> LanguageModelScorer:
    model = build_model(folder, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(folder), model.config, head="linear", max_length=48)
    return LanguageModelScorer(model, encoder, digest="untrained")
