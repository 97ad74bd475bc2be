"""An output folder belongs to one run of one job, whatever kills it on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs.config import ScoreJob
from jobs.manifest import (
    config_digest,
    file_digest,
    finish_output,
    folder_digest,
    opened_output,
    other_inputs,
    package_versions,
    read_manifest,
    require_finished,
    scoring_digests,
    write_json,
)
from jobs.training_config import DpoConfig, SftConfig, TrainJob
from rerank_core.errors import DataError, OutputConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]
INPUTS = {"corpus": "c0", "queries": "q0"}


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture
def config(tmp_path: Path) -> ScoreJob:
    return ScoreJob(prepared=tmp_path / "prepared", artefact=tmp_path / "dpo", output=tmp_path / "run")


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, call: str) -> Iterator[None]:
    """End the process at the first such call of the operating system."""

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, call, kill)
        with pytest.raises(Killed):
            yield


def opened(config: ScoreJob, *, job: str = "score", inputs: dict[str, str] = INPUTS):
    return opened_output(config.output, job=job, config=config, inputs=inputs)


# --- digests


def test_the_digest_ignores_where_and_how_fast_a_job_runs(config: ScoreJob) -> None:
    moved = replace(
        config,
        prepared=Path("x"),
        artefact=Path("y"),
        output=Path("z"),
        num_workers=7,
        address="a",
        trec=True,
    )
    assert config_digest(moved) == config_digest(config)


@pytest.mark.parametrize("changed", [{"fold": 1}, {"split": "test"}, {"shard_queries": 5}])
def test_the_digest_follows_what_is_computed(config: ScoreJob, changed: dict[str, object]) -> None:
    assert config_digest(replace(config, **changed)) != config_digest(config)  # type: ignore[arg-type]


def test_the_digest_follows_nested_settings() -> None:
    config = TrainJob(prepared=Path("a"), output=Path("b"))
    assert config_digest(replace(config, max_failures=9)) == config_digest(config)
    changed = [
        replace(config, dpo=DpoConfig(beta=0.2)),
        replace(config, sft=SftConfig(learning_rate=1e-3)),
        replace(config, objectives=("sft",)),
        config,
    ]
    assert len({config_digest(one) for one in changed}) == len(changed)


def test_a_folders_digest_follows_names_and_bytes_of_the_files_asked_for(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "deep" / "b.md").write_text("two")
    whole, texts = folder_digest(tmp_path), folder_digest(tmp_path, patterns=("*.txt",))
    (tmp_path / "deep" / "b.md").write_text("three")
    assert folder_digest(tmp_path) != whole
    assert folder_digest(tmp_path, patterns=("*.txt",)) == texts
    (tmp_path / "a.txt").rename(tmp_path / "c.txt")
    assert folder_digest(tmp_path, patterns=("*.txt",)) != texts
    assert file_digest(tmp_path / "c.txt") == hashlib.sha256(b"one").hexdigest()


def prepared_with_one_fold(folder: Path) -> Path:
    (folder / "fold-0").mkdir(parents=True)
    for name in ("candidates", "corpus", "queries", "fold-0/split"):
        (folder / f"{name}.parquet").write_text(name)
    return folder


@pytest.mark.parametrize("name", ["candidates", "corpus", "queries", "split"])
def test_what_differs_from_the_inputs_of_a_run_is_named(tmp_path: Path, name: str) -> None:
    prepared = prepared_with_one_fold(tmp_path)
    digests = scoring_digests(prepared, fold=0)
    manifest = {"digests": {f"input:{key}": digest for key, digest in digests.items()}}
    assert other_inputs(manifest, digests) == []
    (prepared / ("fold-0/split.parquet" if name == "split" else f"{name}.parquet")).write_text("other")
    assert other_inputs(manifest, scoring_digests(prepared, fold=0)) == [name]
    assert other_inputs({"digests": {}}, digests) == ["candidates", "corpus", "queries", "split"]


def test_a_fold_that_a_prepared_folder_lacks_has_no_digests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no fold 3; pass a folder that has it"):
        scoring_digests(prepared_with_one_fold(tmp_path), fold=3)


# --- claiming a folder


def test_a_new_folder_is_claimed_with_what_runs_in_it(config: ScoreJob) -> None:
    with opened(config) as state:
        assert state == "new"
        manifest = read_manifest(config.output)
    assert (manifest["job"], manifest["status"]) == ("score", "running")
    assert manifest["config"]["shard_queries"] == config.shard_queries
    assert manifest["digests"] == {
        "config": config_digest(config),
        "input:corpus": "c0",
        "input:queries": "q0",
    }
    assert manifest["versions"]["pyarrow"] == package_versions()["pyarrow"]


def test_an_interrupted_run_is_resumed_and_a_finished_one_is_finished(config: ScoreJob) -> None:
    with pytest.raises(RuntimeError), opened(config):
        raise RuntimeError("power cut")
    with opened(config) as state:
        assert state == "resumed"
        finish_output(config.output, results={"queries": 3})
    with opened(config) as state:
        assert state == "finished"
    assert read_manifest(config.output)["results"] == {"queries": 3}


def test_other_settings_and_other_inputs_are_refused_by_name(config: ScoreJob) -> None:
    with opened(config):
        pass
    with (
        pytest.raises(OutputConflictError, match="made with another setting fold; choose"),
        opened(replace(config, fold=1)),
    ):
        pass
    others = {"corpus": "c1", "extra": "e0"}
    message = "another input:corpus, input:extra, input:queries;"
    with pytest.raises(OutputConflictError, match=message), opened(config, inputs=others):
        pass


def test_settings_of_a_version_that_knew_others_are_refused(config: ScoreJob) -> None:
    with opened(config):
        pass
    manifest = read_manifest(config.output)
    digests = manifest["digests"] | {"config": "of other settings"}
    write_json(config.output / "manifest.json", manifest | {"digests": digests})
    message = "made with another version of the settings; choose"
    with pytest.raises(OutputConflictError, match=message), opened(config):
        pass


def test_the_folder_of_another_job_is_refused(config: ScoreJob) -> None:
    with opened(config, job="attribute"):
        pass
    with pytest.raises(OutputConflictError, match="belongs to the job 'attribute'"), opened(config):
        pass


def test_a_folder_with_somebodys_files_is_refused_and_left_alone(config: ScoreJob) -> None:
    config.output.mkdir()
    (config.output / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputConflictError, match=r"files of something else \(thesis.tex\)"), opened(config):
        pass
    assert not (config.output / "manifest.json").exists()


def test_an_output_that_is_a_file_or_lies_below_one_is_refused(config: ScoreJob) -> None:
    config.output.write_text("years of work")
    for output in (config.output, config.output / "run"):
        with (
            pytest.raises(OutputConflictError, match="is a file or lies below one; choose another --output"),
            opened(replace(config, output=output)),
        ):
            pass
        with pytest.raises(DataError, match="was not written by a Whyrank job"):
            read_manifest(output)
    assert config.output.read_text() == "years of work"


def test_a_second_process_is_refused_while_the_first_works(config: ScoreJob) -> None:
    with opened(config):
        with pytest.raises(OutputConflictError, match="another process is working here"), opened(config):
            pass
        assert read_manifest(config.output)["status"] == "running"
    with opened(config) as state:
        assert state == "resumed"


def test_a_killed_process_leaves_no_lock_behind(config: ScoreJob) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from jobs.config import ScoreJob; from jobs.manifest import opened_output\n"
        "prepared, artefact, output = map(Path, sys.argv[1:])\n"
        "config = ScoreJob(prepared=prepared, artefact=artefact, output=output)\n"
        f"with opened_output(output, job='score', config=config, inputs={INPUTS!r}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(config.prepared), str(config.artefact), str(config.output)]
    result = subprocess.run(command, cwd=ROOT, timeout=60, check=False)
    assert result.returncode == -signal.SIGKILL
    with opened(config) as state:
        assert state == "resumed"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_while_the_first_manifest_is_written_leaves_the_folder_new(
    config: ScoreJob, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with killed_at(monkeypatch, call), opened(config):
        pass
    with opened(config) as state:
        assert state == "new"


# --- the commit


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit_told_by(package: Path) -> str:
    code = "from jobs.manifest import git_commit; print(git_commit())"
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-P", "-c", code]
    told = subprocess.run(command, cwd=package, env=environment, check=True, capture_output=True, text=True)
    return told.stdout.strip()


def test_the_commit_is_that_of_a_checkout_not_of_a_repository_around_the_installed_package(
    tmp_path: Path,
) -> None:
    installed = tmp_path / "project" / ".venv" / "site-packages"
    shutil.copytree(ROOT / "jobs", installed / "jobs")
    assert commit_told_by(installed) == "None"
    project = tmp_path / "project"
    (project / "thesis.tex").write_text("years of work")
    git(project, "init", "--quiet")
    git(project, "add", "thesis.tex")
    git(project, "commit", "--quiet", "--message", "mine")
    assert commit_told_by(installed) == "None"
    git(project, "add", ".venv/site-packages/jobs/*.py")
    git(project, "commit", "--quiet", "--message", "a checkout")
    assert commit_told_by(installed) == git(project, "rev-parse", "HEAD")
    (project / "thesis.tex").write_text("one more year")
    assert commit_told_by(installed) == git(project, "rev-parse", "HEAD") + "+changes"


# --- reading and writing


@pytest.mark.parametrize("key", ["job", "status", "digests", "config"])
def test_a_manifest_without_a_required_key_is_refused(config: ScoreJob, key: str) -> None:
    with opened(config):
        pass
    manifest = read_manifest(config.output)
    del manifest[key]
    write_json(config.output / "manifest.json", manifest)
    with pytest.raises(DataError, match="not the record of a Whyrank job"):
        read_manifest(config.output)


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    write_json(path, {"n": 1, "name": "Grünland", "where": Path("x")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"n": 1, "name": "Grünland", "where": "x"}
    for call in ("fsync", "replace"):
        with killed_at(monkeypatch, call):
            write_json(path, {"n": 2})
        assert json.loads(path.read_text(encoding="utf-8"))["n"] == 1
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, circular())
    assert json.loads(path.read_text(encoding="utf-8"))["n"] == 1
    write_json(path, {"n": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"n": 2}


def circular() -> dict[str, object]:
    value: dict[str, object] = {}
    value["self"] = value
    return value


def test_an_input_folder_must_be_there_of_the_right_job_and_finished(config: ScoreJob) -> None:
    with pytest.raises(DataError, match=r"manifest\.json is missing: run `whyrank score --output .*` first"):
        require_finished(config.output, job="score")
    with opened(config):
        pass
    with pytest.raises(DataError, match="unfinished; run the same `whyrank score` command again"):
        require_finished(config.output, job="score")
    finish_output(config.output, results={})
    with pytest.raises(
        DataError, match="written by `whyrank score`, but an output of `whyrank prepare` is needed"
    ):
        require_finished(config.output, job="prepare")
    assert require_finished(config.output, job="score")["status"] == "finished"


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"job": ')
    with pytest.raises(DataError, match=r"is not JSON .*; delete the folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ['{"name": "a web app"}', "[]", '"text"'])
def test_the_manifest_of_another_program_is_refused(config: ScoreJob, content: str) -> None:
    config.output.mkdir()
    (config.output / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="not the record of a Whyrank job"):
        require_finished(config.output, job="score")
    with pytest.raises(DataError, match="not the record of a Whyrank job"), opened(config):
        pass
