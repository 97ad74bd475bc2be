"""What generative training starts from, learns from and leaves; the parts that need neither Ray nor steps."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import whyrank
from jobs.leakage import judged
from jobs.train_generative import check_examples, check_inputs, generative_task
from jobs.train_generative_worker import build_trainer, read_examples, trained_writer
from jobs.training_config import GenerativeTrainJob, NoisySftConfig, RpoConfig
from rerank_core.errors import ConfigError, DataError
from rerank_core.formats import (
    pointwise_table,
    read_documents,
    read_pointwise,
    read_queries,
    read_split,
    write_table,
)
from rerank_core.models.pretrained import resolve_model
from rerank_core.models.tiny import save_tiny_writer
from rerank_core.models.writer import load_writer, load_writer_tokenizer, num_tokens, save_writer
from rerank_core.prompting.ranking_list import parse_ranking

if TYPE_CHECKING:
    from jobs.train_generative_worker import GenerativeTask, ListExamples


@pytest.fixture(scope="module")
def writer_folder(prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writer")
    texts = [document.content for document in read_documents(prepared_folder / "corpus.parquet").values()]
    save_tiny_writer(
        folder, [*texts, "Rank 1: d00 – shares ice with the query"], seed=0, width=16, num_layers=1
    )
    return folder


@pytest.fixture
def config(prepared_folder: Path, writer_folder: Path, tmp_path: Path) -> GenerativeTrainJob:
    return GenerativeTrainJob(
        prepared=prepared_folder,
        output=tmp_path / "out",
        model=str(writer_folder),
        fold=1,
        num_candidates=3,
        max_words=12,
        max_length=400,
        num_workers=1,
        seed=7,
    )


def task_of(config: GenerativeTrainJob, name: Any) -> GenerativeTask:
    return generative_task(config, name, start=Path(config.model))


def examples_of(config: GenerativeTrainJob) -> ListExamples:
    return read_examples(config, load_writer_tokenizer(Path(config.model)))


def checked(config: GenerativeTrainJob) -> dict[str, str]:
    return check_inputs(config, resolve_model(config.model))


# --- what is refused


def test_the_command_names_a_missing_prepared_folder(
    writer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing")
    command = ["train-generative", "--prepared", missing, "--output", missing, "--model", str(writer_folder)]
    assert whyrank.main(command) == 2
    assert f"{missing}/manifest.json is missing" in capsys.readouterr().err


def test_steps_that_cannot_be_divided_among_workers_and_passes_are_refused(
    config: GenerativeTrainJob,
) -> None:
    config = replace(config, num_workers=2, queries_per_pass=3, sft=NoisySftConfig(queries_per_step=6))
    checked(replace(config, objectives=("sft",)))
    with pytest.raises(ConfigError, match=r"dpo\.queries_per_step 4 is no multiple of 6 \(2 workers with 3"):
        checked(config)


def test_a_model_that_cannot_write_is_refused(config: GenerativeTrainJob, model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="no causal language model"):
        checked(replace(config, model=str(model_folder)))


def test_a_model_with_too_few_positions_is_refused(config: GenerativeTrainJob) -> None:
    with pytest.raises(ConfigError, match="max_length 513 exceeds the model's 512 positions"):
        checked(replace(config, max_length=513))


def test_a_model_that_was_trained_on_another_fold_is_not_trained_further(
    config: GenerativeTrainJob, tmp_path: Path
) -> None:
    task = task_of(config, "sft")
    save_writer(load_writer(Path(config.model)), tmp_path / "sft", provenance=task.provenance)
    config = replace(config, model=str(tmp_path / "sft"), objectives=("dpo",))
    checked(config)
    with pytest.raises(ConfigError, match=r"another split of these queries \(fold 1 "):
        checked(replace(config, fold=0))


def test_a_query_that_does_not_fit_is_refused_and_never_cut(config: GenerativeTrainJob) -> None:
    tokenizer = load_writer_tokenizer(Path(config.model))
    found = examples_of(config).examples
    longest = max(num_tokens(tokenizer, e.prompt, a) for e in found for a in (e.chosen, e.rejected))
    check_examples(replace(config, max_length=longest), Path(config.model))
    with pytest.raises(
        DataError, match=rf"have {longest} tokens, more than {longest - 1}; raise --max-length"
    ):
        check_examples(replace(config, max_length=longest - 1), Path(config.model))


def test_a_split_in_which_no_query_has_two_grades_is_refused(
    config: GenerativeTrainJob, tmp_path: Path
) -> None:
    train = tmp_path / "fold-1" / "train"
    train.mkdir(parents=True)
    for name in ("queries", "corpus"):
        (tmp_path / f"{name}.parquet").symlink_to(config.prepared / f"{name}.parquet")
    rows = read_pointwise(config.prepared / "fold-1" / "train" / "pointwise.parquet")
    write_table(pointwise_table([replace(row, grade=1) for row in rows]), train / "pointwise.parquet")
    with pytest.raises(DataError, match="no query has candidates of two grades among its first 3"):
        check_examples(replace(config, prepared=tmp_path), Path(config.model))


# --- what is learnt from


def test_examples_are_the_training_queries_in_the_order_of_their_grades(config: GenerativeTrainJob) -> None:
    found = examples_of(config)
    rows = read_pointwise(config.prepared / "fold-1" / "train" / "pointwise.parquet")
    split = read_split(config.prepared / "fold-1" / "split.parquet")
    queries = read_queries(config.prepared / "queries.parquet")
    assert {split[example.query_id] for example in found.examples} == {"train"}
    assert len(found.examples) + found.num_left_out == len({row.query_id for row in rows})
    for example in found.examples:
        listed = [row for row in rows if row.query_id == example.query_id and row.first_stage_rank <= 3]
        grades = {row.doc_id: row.grade for row in listed}
        chosen, rejected = (parse_ranking(text, list(grades)) for text in (example.chosen, example.rejected))
        assert chosen.problems == rejected.problems == ()
        assert [grades[doc_id] for doc_id in chosen.order] == sorted(grades.values(), reverse=True)
        assert [grades[doc_id] for doc_id in rejected.order] != sorted(grades.values(), reverse=True)
        assert chosen.reasons == rejected.reasons
        assert queries[example.query_id].text in example.prompt


def test_every_process_reads_the_same_examples_and_the_seed_draws_the_rejected_ones(
    config: GenerativeTrainJob,
) -> None:
    assert examples_of(config) == examples_of(config)
    other = examples_of(replace(config, seed=8)).examples
    assert [e.chosen for e in other] == [e.chosen for e in examples_of(config).examples]
    assert [e.rejected for e in other] != [e.rejected for e in examples_of(config).examples]


def test_a_reason_names_words_that_the_query_and_the_shown_document_share(config: GenerativeTrainJob) -> None:
    queries = read_queries(config.prepared / "queries.parquet")
    num_reasons = 0
    for example in examples_of(config).examples:
        shown = dict(line.split(": ", 1) for line in example.prompt.splitlines() if line.startswith("d"))
        for doc_id, reason in parse_ranking(example.chosen, list(shown)).reasons.items():
            shared = reason.removeprefix("shares ").removesuffix(" with the query").split(", ")
            assert set(shared) <= set(shown[doc_id].split()) & set(queries[example.query_id].text.split())
            num_reasons += 1
    assert num_reasons > 0


def test_documents_that_a_prompt_cuts_are_counted(config: GenerativeTrainJob) -> None:
    whole, cut = examples_of(replace(config, max_words=1000)), examples_of(replace(config, max_words=1))
    assert whole.num_cut == 0
    assert cut.num_cut == sum(line.startswith("d") for e in cut.examples for line in e.prompt.splitlines())


# --- how it is learnt


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_the_trainer_takes_every_token_that_was_counted(
    config: GenerativeTrainJob, tmp_path: Path, name: Any
) -> None:
    trainer: Any = build_trainer(task_of(config, name), world=1, scratch=tmp_path, zero=None)
    found = examples_of(config).examples
    counted = [num_tokens(trainer.processing_class, e.prompt, e.chosen) for e in found]
    taken = [
        len(row["input_ids"] if name == "sft" else row["prompt_ids"] + row["chosen_ids"])
        for row in trainer.train_dataset
    ]
    assert taken == counted


def test_settings_reach_the_trainers(config: GenerativeTrainJob, tmp_path: Path) -> None:
    config = replace(
        config,
        queries_per_pass=2,
        sft=NoisySftConfig(queries_per_step=8, noise_alpha=3.0),
        dpo=RpoConfig(beta=0.2, nll_weight=0.5),
    )
    sft: Any = build_trainer(task_of(config, "sft"), world=1, scratch=tmp_path, zero=None)
    assert (sft.args.neftune_noise_alpha, sft.args.gradient_accumulation_steps) == (3.0, 4)
    dpo: Any = build_trainer(task_of(config, "dpo"), world=1, scratch=tmp_path, zero=None)
    assert (dpo.beta, dpo.loss_types, dpo.loss_weights) == (0.2, ["sigmoid", "sft"], [1.0, 0.5])
    for trainer in (sft, dpo):
        assert (trainer.args.bf16, trainer.args.gradient_checkpointing) == (False, False)
        assert trainer.args.max_length is None
        assert not trainer.args.save_on_each_node
        assert trainer.args.per_device_train_batch_size == 2


def test_the_reference_is_the_model_that_the_stage_starts_from(
    config: GenerativeTrainJob, tmp_path: Path
) -> None:
    trainer: Any = build_trainer(task_of(config, "dpo"), world=1, scratch=tmp_path, zero=None)
    policy, reference = trainer.model.state_dict(), trainer.ref_model.state_dict()
    assert all(torch.equal(policy[name], reference[name]) for name in policy)
    adapted: Any = build_trainer(
        task_of(replace(config, lora_rank=2), "dpo"), world=1, scratch=tmp_path, zero=None
    )
    assert adapted.ref_model is None


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_merged_adapters_write_as_the_adapters_did_in_training(
    config: GenerativeTrainJob, tmp_path: Path, name: Any
) -> None:
    task = task_of(replace(config, lora_rank=2), name)
    trainer: Any = build_trainer(task, world=1, scratch=tmp_path, zero=None)
    trained = {n for n, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in n for n in trained)
    with torch.no_grad():
        for parameter, weight in trainer.model.named_parameters():
            if "lora_B" in parameter:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    merged = trained_writer(task, trainer.model.state_dict())
    ids = torch.tensor([merged.tokenizer("Rank 1: d00")["input_ids"]])
    with torch.inference_mode():
        ours, theirs = merged.model(ids).logits, trainer.model.eval()(ids).logits
        start = load_writer(Path(config.model)).model(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, start, atol=1e-2)
    assert not any("lora" in n for n in merged.model.state_dict())


def test_a_model_names_the_judgements_that_it_has_learnt_from_in_any_stage(
    config: GenerativeTrainJob, tmp_path: Path
) -> None:
    known = {"texts": "other", "split": "s", "trained": "a", "held_out": "b"}
    save_writer(load_writer(Path(config.model)), tmp_path / "start", provenance={"judged": [known]})
    task = generative_task(config, "dpo", start=tmp_path / "start")
    here = asdict(judged(config.prepared, fold=config.fold))
    assert sorted(task.provenance["judged"], key=str) == sorted([known, here], key=str)
    assert task.provenance["fold"] == config.fold
