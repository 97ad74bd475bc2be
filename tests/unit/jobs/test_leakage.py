"""An artefact is used with the fold that it was trained on, wherever that can be told."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from jobs.leakage import refuse_other_fold
from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models.artefact import RerankerSpec

if TYPE_CHECKING:
    from pathlib import Path


def artefact(folder: Path, **provenance: object) -> Path:
    spec = RerankerSpec(
        template="{query}{document}",
        max_length=64,
        max_query_length=32,
        head="linear",
        pooling="last",
        provenance=provenance,
    )
    (folder / "reranker.json").write_text(json.dumps(asdict(spec)))
    return folder


def test_the_queries_of_its_own_fold_may_be_tested(tmp_path: Path) -> None:
    refuse_other_fold(artefact(tmp_path, texts="t", fold=2), fold=2, texts="t")


def test_the_queries_of_another_fold_may_not(tmp_path: Path) -> None:
    model = artefact(tmp_path, texts="t", fold=2)
    with pytest.raises(ConfigError, match=r"trained on fold 2 .* tested in fold 0; pass --fold 2"):
        refuse_other_fold(model, fold=0, texts="t")


def test_an_artefact_of_another_collection_may_meet_any_fold(tmp_path: Path) -> None:
    refuse_other_fold(artefact(tmp_path, texts="other", fold=2), fold=0, texts="t")


@pytest.mark.parametrize("provenance", [{}, {"texts": None, "fold": 2}])
def test_an_artefact_that_has_seen_no_judgement_may_meet_any_fold(
    tmp_path: Path, provenance: dict[str, object]
) -> None:
    refuse_other_fold(artefact(tmp_path, **provenance), fold=0, texts="t")


def test_a_pretrained_model_may_meet_any_fold(tmp_path: Path) -> None:
    refuse_other_fold(tmp_path, fold=0, texts="t")


def test_an_artefact_that_does_not_say_what_it_was_trained_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reranker.json").write_text("{")
    with pytest.raises(ArtefactError, match="broken"):
        refuse_other_fold(tmp_path, fold=0, texts="t")
