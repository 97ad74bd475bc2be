"""An artefact is used with the split that it was trained on, wherever that can be told."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from jobs.config import PrepareJob
from jobs.leakage import Judged, judged, refuse_other_split
from jobs.prepare import run_prepare
from rerank_core.errors import ArtefactError, ConfigError, DataError
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


HERE = Judged(texts="t", split="s2")


def learnt(*found: tuple[str, str]) -> list[dict[str, str]]:
    return [{"texts": texts, "split": split} for texts, split in found]


def test_the_queries_of_its_own_split_may_be_tested(tmp_path: Path) -> None:
    refuse_other_split(artefact(tmp_path, judged=learnt(("t", "s2"))), HERE)


def test_the_queries_of_another_split_may_not(tmp_path: Path) -> None:
    model = artefact(tmp_path, judged=learnt(("t", "s0")), fold=0)
    with pytest.raises(ConfigError, match=r"another split of this collection \(fold 0\)"):
        refuse_other_split(model, HERE)


def test_what_an_earlier_stage_learnt_counts_too(tmp_path: Path) -> None:
    model = artefact(tmp_path, judged=learnt(("other", "s1"), ("t", "s0")))
    with pytest.raises(ConfigError, match="another split"):
        refuse_other_split(model, HERE)


def test_an_artefact_of_another_collection_may_meet_any_split(tmp_path: Path) -> None:
    refuse_other_split(artefact(tmp_path, judged=learnt(("other", "s0"))), HERE)


def test_an_artefact_that_has_seen_no_judgement_may_meet_any_split(tmp_path: Path) -> None:
    refuse_other_split(artefact(tmp_path, judged=[]), HERE)


def test_a_pretrained_model_may_meet_any_split(tmp_path: Path) -> None:
    refuse_other_split(tmp_path, HERE)


def test_an_artefact_that_does_not_say_what_it_was_trained_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reranker.json").write_text("{")
    with pytest.raises(ArtefactError, match="broken"):
        refuse_other_split(tmp_path, HERE)


def test_another_seed_of_the_split_is_another_split_of_the_same_texts(tmp_path: Path) -> None:
    for seed in (0, 1):
        run_prepare(PrepareJob(output=tmp_path / str(seed), seed=seed))
    first, second = (judged(tmp_path / str(seed), fold=0) for seed in (0, 1))
    assert first.texts == second.texts
    assert first.split != second.split


def test_a_fold_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no fold 7"):
        judged(tmp_path, fold=7)
