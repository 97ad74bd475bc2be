"""The page of a comparison says what was measured, and claims no more."""

from dataclasses import replace

import pytest

from rerank_core.evaluation.calibration import ReliabilityBin
from rerank_core.evaluation.method_comparison import (
    Comparison,
    MethodReliability,
    MethodRow,
    MethodTest,
    Share,
)
from rerank_core.evaluation.method_page import (
    PREFERENCE_METRICS,
    RANKING_METRICS,
    draw_comparison,
    markdown_table,
    render_comparison,
)
from rerank_core.evaluation.method_pictures import LearningCurve
from rerank_core.evaluation.significance import Interval

METRICS = [*PREFERENCE_METRICS, *RANKING_METRICS]
BOUNDS = Interval(0.512, 0.401, 0.623)


def comparison_test(adjusted: float) -> MethodTest:
    difference = Interval(0.1, 0.05, 0.15)
    return MethodTest("tiny", "dpo", "bm25", "pairwise_accuracy", difference, p_value=0.01, adjusted=adjusted)


@pytest.fixture
def comparison() -> Comparison:
    spread = dict.fromkeys(METRICS, 0.0123)
    return Comparison(
        collection="sample",
        num_queries=19,
        num_preference_queries=18,
        num_folds=5,
        num_candidates=10.0,
        methods=("dpo",),
        models=("tiny", "smollm2:4"),
        seeds=(0, 1),
        patience=2,
        num_folds_without_choice=0,
        rows=(
            MethodRow("", "bm25", dict.fromkeys(METRICS[1:], BOUNDS), {}),
            MethodRow("tiny", "dpo", dict.fromkeys(METRICS, BOUNDS), spread),
            MethodRow("smollm2:4", "dpo", dict.fromkeys(METRICS, BOUNDS), spread),
        ),
        tests=(comparison_test(0.04), comparison_test(0.06)),
        reliability=(
            MethodReliability("tiny", "dpo", 10, 9, 0.31, 0.05, (ReliabilityBin(0.2, 0.3, 5),)),
            MethodReliability("tiny", "untrained", 10, 0, 0.4, None, ()),
        ),
        seconds={"tiny": {"dpo": 12.4}, "smollm2:4": {"dpo": 30.0}},
        stage_seconds={"tiny": {"dpo": (40.0, 61.2)}, "smollm2:4": {"dpo": ()}},
        cell_seconds=(200.0, 100.0),
        curves={"tiny": (LearningCurve("dpo", 0, (1, 2), (0.5, 0.6)),)},
        truncated_in_training=Share(3, 940),
        truncated_in_test=Share(1200, 12345),
        num_quarantined=0,
        text_model="minilm",
        text_depth=10,
        num_samples=10_000,
    )


def lines(page: str, start: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(start)]


def test_a_value_stands_with_its_interval_and_its_spread_over_seeds(comparison: Comparison) -> None:
    page = render_comparison(comparison, pictures=[])
    value = "0.512 (0.401 to 0.623)"
    assert lines(page, "|  | bm25 |")[0] == f"|  | bm25 | – | {value} | {value} |"
    assert lines(page, "| tiny | dpo |")[0] == "| tiny | dpo |" + f" {value} ±0.012 |" * 3
    assert lines(page, "| tiny | dpo |")[1] == "| tiny | dpo |" + f" {value} ±0.012 |" * 6


def test_only_a_difference_that_withstands_the_correction_is_bold(comparison: Comparison) -> None:
    bold, plain = lines(render_comparison(comparison, pictures=[]), "| tiny | dpo − bm25 |")
    assert bold.endswith("| **+0.100 (+0.050 to +0.150)** | 0.0100 | **0.0400** |")
    assert plain.endswith("| +0.100 (+0.050 to +0.150) | 0.0100 | 0.0600 |")


def test_calibration_cost_and_truncation_are_told(comparison: Comparison) -> None:
    page = render_comparison(comparison, pictures=[])
    assert "| tiny | dpo | 0.310 | 0.050 | 9 of 10 |" in page
    assert "| tiny | untrained | 0.400 | – | 0 of 10 |" in page
    assert "| tiny | dpo | 12 | 51 | 61 |" in page
    assert "| smollm2:4 | dpo | 30 | – | – |" in page
    assert "3 of 940 training documents (over all stages) and 1,200 of 12,345 ranked pairs were read" in page
    assert "took 150 s on average and 200 s at most" in page
    assert "interrupted it has the time of the commands that trained it to its end alone" in page
    assert "19 test queries (5-fold by query), 10.0 candidates each" in page
    assert "one split by query" in render_comparison(replace(comparison, num_folds=1), pictures=[])


def test_the_page_says_how_epochs_were_chosen_and_what_got_no_score(comparison: Comparison) -> None:
    page = render_comparison(comparison, pictures=[])
    assert "chosen on the fold's dev queries, which that fold does not test. 3 of 940" in page
    assert "no finite score" not in page
    odd = render_comparison(replace(comparison, num_folds_without_choice=2, num_quarantined=4), pictures=[])
    assert "In 2 of 5 folds no dev query has a relevant candidate: there the last epoch was taken." in odd
    assert "4 times a query got no finite score" in odd
    unchosen = render_comparison(replace(comparison, patience=0), pictures=[])
    assert "Every stage was trained for all its epochs." in unchosen
    assert "18 queries, those whose candidates differ in grade." in unchosen


def test_every_figure_that_has_something_to_show_is_drawn_and_linked(comparison: Comparison) -> None:
    pictures = draw_comparison(comparison)
    assert sorted(pictures) == ["cost.png", "learning-tiny.png", "reliability-tiny.png"]
    assert all(png.startswith(b"\x89PNG\r\n\x1a\n") for png in pictures.values())
    page = render_comparison(comparison, pictures=pictures)
    assert "![learning-tiny](learning-tiny.png)" in page


def test_a_bar_in_a_cell_does_not_end_the_cell() -> None:
    assert markdown_table(["a", "b"], [["x|y", "z"]]) == "| a | b |\n| --- | --- |\n| x\\|y | z |"
