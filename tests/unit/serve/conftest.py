"""A tiny artefact, and a gateway over it in this process."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from rerank_core.records import Calibration, Query
from rerank_core.testing import OverlapScorer
from serve.app import build_http
from serve.args import ServeArgs
from serve.attributor import AttributorService
from serve.reranker import Reranker
from tests.fake_services import TEXTS, build_overlap_attributor, card_of, open_overlap_deletion
from tests.untrained import save_untrained_artefact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from serve.chat import ChatModel
    from serve.explainer import Writer
    from serve.explanations import Attributors
    from serve.first_stage import Retrievers
    from serve.gateway import RerankerService
    from serve.reranker import ModelCard

QUERY = Query("q", "sea ice")


@pytest.fixture(scope="session")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained artefact of 48 tokens, calibrated."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_untrained_artefact(folder, texts=[*TEXTS, QUERY.text], calibration=Calibration(2.0, -1.0))
    return folder


@pytest.fixture
def card(artefact: Path) -> ModelCard:
    return card_of(artefact)


@pytest.fixture
def connect(artefact: Path, card: ModelCard) -> Iterator[Callable[..., TestClient]]:
    """Connect clients to gateways in this process; their reranker counts the words that two texts share."""
    with ExitStack() as stack:

        def connected(
            reranker: RerankerService | None = None,
            *,
            attributors: Attributors | None = None,
            writer: Writer | None = None,
            retrievers: Retrievers | None = None,
            chat_model: ChatModel | None = None,
            **settings: object,
        ) -> TestClient:
            args = ServeArgs.model_validate(
                {"artefact": artefact, "auth": "keys" in settings, "name": "tiny", **settings}
            )
            fake = Reranker(OverlapScorer(), card, max_tokens_per_batch=args.max_tokens_per_batch)
            app = build_http(
                args,
                reranker=reranker or fake,
                attributors=attributors
                or AttributorService(build_overlap_attributor, open_overlap_deletion, digest=card.digest),
                writer=writer,
                retrievers=retrievers,
                chat_model=chat_model,
            )
            return stack.enter_context(TestClient(app, client=("127.0.0.1", 50_000)))

        yield connected
