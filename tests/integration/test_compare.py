"""A real comparison, small: every method trained, scored and put into tables; what is done is done once."""

import json
import threading
import time
from pathlib import Path

import pytest

from jobs.cells import Cell, cell_log, plan_cells, run_folders
from jobs.compare import run_compare
from jobs.config import PrepareJob
from jobs.manifest import MANIFEST
from jobs.prepare import run_prepare
from jobs.training_config import CompareJob, DpoConfig, PpoConfig, RewardModelConfig, SftConfig
from rerank_core.errors import JobError
from rerank_core.evaluation.method_page import COMPARISON_PAGE, PREFERENCE_METRICS, RANKING_METRICS
from rerank_core.formats import read_documents
from rerank_core.models.artefact import read_spec
from rerank_core.models.tiny import save_tiny_encoder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

METHODS = ("untrained", "sft", "rm", "dpo", "ppo")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CompareJob:
    root = tmp_path_factory.mktemp("compare")
    run_prepare(PrepareJob(output=root / "prepared", num_folds=1))
    texts = [d.content for d in read_documents(root / "prepared" / "corpus.parquet").values()]
    save_tiny_encoder(root / "tiny", texts, seed=0)
    return CompareJob(
        prepared=root / "prepared",
        output=root / "out",
        models=(str(root / "tiny"),),
        seeds=(0, 1),
        max_length=128,
        sft=SftConfig(num_epochs=2, learning_rate=1e-3, queries_per_step=16),
        rm=RewardModelConfig(num_epochs=1, learning_rate=1e-3, queries_per_step=16),
        dpo=DpoConfig(num_epochs=1, learning_rate=1e-3, queries_per_step=16),
        ppo=PpoConfig(num_epochs=1, learning_rate=1e-3, queries_per_step=16),
        text_model=str(root / "tiny"),
        text_depth=3,
        num_samples=500,
    )


@pytest.fixture(scope="module")
def compared(config: CompareJob, ray_instance: None) -> list[Cell]:
    """A comparison of which one cell fails at first; the same command again does what was left."""
    cells = plan_cells(config)
    in_the_way = run_folders(config, cells[1])["sft"]
    intruder = threading.Thread(target=put_in_the_way, args=(config.output, in_the_way))
    intruder.start()
    with pytest.raises(JobError, match=r"1 of 2 cells failed \(tiny, seed 1, fold 0: OutputConflictError"):
        run_compare(config)
    intruder.join()
    logs = [cell_log(cell) for cell in cells]
    in_the_way.unlink()
    assert run_compare(config).state == "resumed"
    assert [cell_log(cell) for cell in cells] == logs
    return cells


def put_in_the_way(output: Path, folder: Path) -> None:
    """Put a file where a cell's folder would go, as soon as the comparison has claimed its own."""
    while not (output / MANIFEST).exists():
        time.sleep(0.01)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")


def test_every_method_has_its_place_in_both_tables(config: CompareJob, compared: list[Cell]) -> None:
    comparison = json.loads((config.output / "comparison.json").read_text())
    rows = {(row["model"], row["method"]): row for row in comparison["rows"]}
    assert list(rows) == [
        *(("", name) for name in ("floor", "random", "bm25")),
        *(("tiny", method) for method in METHODS),
        ("", "ideal"),
    ]
    for (model, method), row in rows.items():
        lacks = set() if model else {"pairwise_loss"}
        assert set(row["values"]) == {*PREFERENCE_METRICS, *RANKING_METRICS} - lacks, method
    ideal, floor = rows["", "ideal"]["values"], rows["", "floor"]["values"]
    for name in ("pairwise_accuracy", "top1_accuracy", *RANKING_METRICS):
        assert ideal[name]["mean"] == pytest.approx(1.0)
        assert floor[name]["mean"] < rows["", "random"]["values"][name]["mean"] < 1.0
    page = (config.output / COMPARISON_PAGE).read_text()
    for line in ("| tiny | ppo |", "| tiny | dpo − sft |", "![cost](cost.png)"):
        assert line in page


def test_the_figures_lie_beside_the_page(config: CompareJob, compared: list[Cell]) -> None:
    names = sorted(path.name for path in config.output.glob("*.png"))
    assert names == ["cost.png", "learning-tiny.png", "reliability-tiny.png"]


def test_seeds_differ_and_their_artefacts_state_a_calibration_where_one_fits(
    config: CompareJob, compared: list[Cell]
) -> None:
    losses = [[line["loss"] for line in cell_log(cell) if "loss" in line] for cell in compared]
    assert losses[0] != losses[1]
    for cell in compared:
        refused = {line["stage"] for line in cell_log(cell) if line.get("event") == "not calibrated"}
        for method in METHODS[1:]:
            calibration = read_spec(cell.folder / "train" / method).calibration
            assert (calibration is None) == (method in refused)


def test_the_same_command_again_has_nothing_to_do(config: CompareJob, compared: list[Cell]) -> None:
    page = config.output / COMPARISON_PAGE
    before = page.stat().st_mtime_ns
    assert run_compare(config).state == "finished"
    assert page.stat().st_mtime_ns == before
