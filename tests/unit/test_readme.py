"""What the README tells a reader to type works as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from rerank_core import Document, Query
from rerank_core.models.artefact import save_artefact
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.models.tiny import save_tiny_encoder
from whyrank import JOBS, SERVING, parse

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for _, text in BLOCKS for line in text.splitlines() if line.startswith("whyrank ")]
PYTHON = [text for language, text in BLOCKS if language == "python"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    job, *arguments = shlex.split(command)[1:]
    assert type(parse([job, *arguments])) is (JOBS | SERVING)[job]


def test_the_quickstart_has_five_commands() -> None:
    assert [shlex.split(command)[1] for command in COMMANDS][:5] == [
        *("prepare", "train", "score", "attribute", "evaluate")
    ]


def test_the_python_example_prints_scores_and_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = PYTHON
    folder = tmp_path / "model"
    save_tiny_encoder(folder, ["Ice freeboard from radar", "River ice dates"], seed=0)
    model = build_model(folder, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(folder), model.config, head="linear", max_length=64)
    save_artefact(
        LanguageModelScorer(model, encoder, digest="untrained"),
        tmp_path / "runs" / "mine-train" / "dpo",
        head="linear",
        golden=[(Query("q", "sea ice"), Document("d", "River ice dates."))],
        provenance={},
    )
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if "[WARNING]" not in line]  # of DeepSpeed, where it is first imported
    assert len(lines[0].split(",")) == 2
    assert lines[1] == "estimated bound on the error: 0.0"  # so few words are solved within the budget
    assert [line.split()[0] for line in lines[2:]] == ["Ice", "freeboard", "from", "radar", "2011", "2020"]
