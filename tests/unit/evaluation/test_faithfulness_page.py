"""The page says what was measured, of how much, and leaves out what was not."""

from dataclasses import replace

from rerank_core.evaluation.document_table import Difference, MeanRow
from rerank_core.evaluation.faithfulness_page import FaithfulnessTables, render_faithfulness
from rerank_core.evaluation.significance import Interval

DELETIONS = ("comprehensiveness", "sufficiency", "top_drop", "flip", "beats_random")
AGREEMENT = ("kendall_tau", "top_5", "top_10", "relative_l2")
CURVES = ("aopc", "naopc", *(f"{way}_{10 * n}" for way in ("deleted", "inserted") for n in range(1, 11)))


def row(kind, measures, mean=0.9):
    return MeanRow("dpo", kind, 7, 9, dict.fromkeys(measures, Interval(mean, mean - 0.1, mean + 0.1)))


TABLES = FaithfulnessTables(
    num_top=10,
    num_words=60,
    num_samples=1000,
    deletions=(row("attribution", DELETIONS), row("random", DELETIONS, 0.5)),
    against_baselines=(
        Difference(("dpo", "attribution"), ("dpo", "random"), "flip", 7, 9, Interval(0.4, -0.1, 0.9)),
    ),
    between_names=(),
)
CLOSE = replace(
    TABLES,
    curves=(row("attribution", CURVES),),
    stability=(row("seed", AGREEMENT), row("inserted", (*AGREEMENT, "inserted_mass", "inserted_words"), 0.2)),
)


def test_the_share_of_documents_that_beat_chance_is_stated_for_attributions_only():
    page = render_faithfulness(TABLES)
    claims = [line for line in page.splitlines() if line.startswith("- ")]
    assert claims == [
        "- dpo: deleting the top 10 words lowers the score more than the mean of 20 random deletions of 10"
        " words in 90.0% [80.0%, 100.0%] of 9 documents of 7 queries."
    ]


def test_every_number_stands_with_its_interval_and_count():
    page = render_faithfulness(TABLES)
    assert "| dpo | random | 7 | 9 | 0.500 [0.400, 0.600] |" in page
    assert "| dpo attribution | dpo random | rank falls | 7 | 9 | +0.400 [-0.100, +0.900] |" in page


def test_one_name_is_not_compared_with_others():
    assert "None: one name only, or no document that two of them share." in render_faithfulness(TABLES)


def test_what_was_not_measured_has_no_section():
    assert "## Stability" not in render_faithfulness(TABLES)
    page = render_faithfulness(CLOSE)
    assert "## Deletion curves, normalised" in page
    assert "true ones are as wide or wider" in page
    assert "which is less than a paraphrase" in page


def test_a_measure_that_a_kind_does_not_have_is_a_dash():
    page = render_faithfulness(CLOSE)
    assert "0.900 [0.800, 1.000] | – | – |" in page
