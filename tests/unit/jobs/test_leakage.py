"""An artefact never meets, in a test, a query that it was trained on, however the folder was prepared."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from jobs.config import PrepareJob
from jobs.leakage import Judged, judged, learnt_from, query_digest, refuse_other_split
from jobs.prepare import run_prepare
from rerank_core.data.loading import collection_folder
from rerank_core.errors import ArtefactError, ConfigError, DataError
from rerank_core.formats import read_split
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
    folder.mkdir(exist_ok=True)
    (folder / "reranker.json").write_text(json.dumps(asdict(spec)))
    return folder


HERE = Judged(texts="t", split="s2", trained="a b c", held_out="d e")


def learnt(*folds: Judged) -> list[dict[str, str]]:
    return [asdict(fold) for fold in folds]


def test_the_queries_of_its_own_split_may_be_tested(tmp_path: Path) -> None:
    refuse_other_split(artefact(tmp_path, judged=learnt(HERE)), HERE)


def test_the_queries_that_it_was_trained_on_may_not(tmp_path: Path) -> None:
    there = Judged(texts="t", split="s0", trained="a e", held_out="b c d")
    model = artefact(tmp_path, judged=learnt(there), fold=0)
    message = r"another split of these queries \(fold 0 .*: on 1 of the 2 dev and test queries .*; pass the"
    with pytest.raises(ConfigError, match=message):
        refuse_other_split(model, HERE)


def test_a_change_of_texts_does_not_switch_the_check_off(tmp_path: Path) -> None:
    model = artefact(tmp_path, judged=learnt(replace(HERE, texts="t2", trained="d", held_out="a")))
    with pytest.raises(ConfigError, match="another split"):
        refuse_other_split(model, HERE)


def test_what_an_earlier_stage_learnt_counts_too(tmp_path: Path) -> None:
    before = Judged(texts="other", split="s1", trained="e", held_out="")
    model = artefact(tmp_path, judged=learnt(before, HERE))
    with pytest.raises(ConfigError, match="another split"):
        refuse_other_split(model, HERE)


def test_an_artefact_of_other_queries_may_meet_any_split(tmp_path: Path) -> None:
    others = Judged(texts="other", split="s0", trained="x y", held_out="a d")
    refuse_other_split(artefact(tmp_path, judged=learnt(others)), HERE)


def test_an_artefact_that_has_seen_no_judgement_may_meet_any_split(tmp_path: Path) -> None:
    refuse_other_split(artefact(tmp_path, judged=[]), HERE)


def test_a_pretrained_model_may_meet_any_split(tmp_path: Path) -> None:
    refuse_other_split(tmp_path, HERE)


def test_a_broken_artefact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reranker.json").write_text("{")
    with pytest.raises(ArtefactError, match="broken"):
        refuse_other_split(tmp_path, HERE)


def test_an_artefact_that_does_not_name_its_training_queries_is_refused(tmp_path: Path) -> None:
    model = artefact(tmp_path, judged=[{"texts": "t", "split": "s2"}])
    with pytest.raises(ConfigError, match=r"does not name the queries .*; train it again"):
        learnt_from(model)


def test_a_query_is_known_again_by_its_text_but_for_case_and_spaces() -> None:
    assert query_digest(" Sea  ice\n") == query_digest("sea\u00a0ICE")
    assert query_digest("sea ice") != query_digest("seaice")


def test_a_model_is_refused_by_a_grown_collection_that_is_split_anew(tmp_path: Path) -> None:
    first = run_prepare(PrepareJob(output=tmp_path / "first")).output
    model = artefact(tmp_path / "model", judged=learnt(judged(first, fold=0)), fold=0)
    grown = shutil.copytree(str(collection_folder("sample")), tmp_path / "grown")
    with (grown / "corpus.jsonl").open("a", encoding="utf-8") as corpus:
        corpus.write(json.dumps({"doc_id": "new", "title": "New", "text": "One more.", "url": ""}) + "\n")
    for seed, is_refused in ((0, False), (1, True)):
        job = PrepareJob(collection=str(grown), output=tmp_path / f"seed-{seed}", seed=seed)
        here = judged(run_prepare(job).output, fold=0)
        assert here.texts != judged(first, fold=0).texts
        if is_refused:
            with pytest.raises(ConfigError, match="another split"):
                refuse_other_split(model, here)
        else:
            refuse_other_split(model, here)


def test_every_query_of_a_fold_is_trained_on_or_held_out(prepared_folder: Path) -> None:
    here = judged(prepared_folder, fold=0)
    splits = list(read_split(prepared_folder / "fold-0" / "split.parquet").values())
    assert len(here.trained.split()) == splits.count("train")
    assert len(here.held_out.split()) == splits.count("dev") + splits.count("test")


def test_a_text_that_two_splits_share_does_not_shut_a_model_out_of_its_own_fold(tmp_path: Path) -> None:
    folder = shutil.copytree(str(collection_folder("sample")), tmp_path / "twice")
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    same = [json.dumps({**row, "text": "sea ice"}) + "\n" for row in rows]
    (folder / "queries.jsonl").write_text("".join(same), encoding="utf-8")
    here = judged(run_prepare(PrepareJob(collection=str(folder), output=tmp_path / "out")).output, fold=0)
    assert (here.trained, here.held_out) == (query_digest("sea ice"), "")
    refuse_other_split(artefact(tmp_path / "model", judged=learnt(here)), here)


def test_a_fold_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no fold 7"):
        judged(tmp_path, fold=7)
