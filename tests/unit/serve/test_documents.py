"""What docs/api.md and docs/operations.md tell a reader to send or to type works as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from rerank_core.records import Document
from rerank_core.retrieval.bm25 import Bm25Retriever
from serve.args import ServeArgs
from serve.auth import KeyRing
from serve.retriever import RetrieverService
from tests.fake_services import ScriptedChat
from whyrank import JOBS, SERVING, main, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.testclient import TestClient

ROOT = Path(__file__).parents[3]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
REQUESTS = re.findall(r"```http\n(.*?)```", API, flags=re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", OPERATIONS, flags=re.DOTALL)
    for line in block.splitlines()
    if line
]


@pytest.mark.parametrize("request_text", REQUESTS, ids=lambda text: text.splitlines()[0])
def test_every_request_of_the_api_s_description_is_answered(
    connect: Callable[..., TestClient], request_text: str
) -> None:
    line, _, body = request_text.partition("\n")
    method, path = line.split()
    corpus = RetrieverService(Bm25Retriever([Document("d1", "Sea ice.")]))
    answer = connect(retrievers=corpus, chat_model=ScriptedChat()).request(
        method, path, json=json.loads(body) if body.strip() else None
    )
    assert answer.status_code == 200, answer.text


def test_every_route_is_described(connect: Callable[..., TestClient]) -> None:
    for path in connect().get("/openapi.json").json()["paths"]:
        assert f"`{path}`" in API or f" {path}`" in API or f" {path}\n" in API, path


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("whyrank ")])
def test_every_command_is_understood(command: str) -> None:
    name, *arguments = shlex.split(command)[1:]
    assert type(parse([name, *arguments])) is (JOBS | SERVING)[name]


def test_the_commands_for_keys_add_one_take_the_older_away_and_then_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed, valid = [], []
    for command in [line for line in COMMANDS if line.startswith("whyrank key ")]:
        assert main(shlex.split(command)[1:]) == 0
        printed += capsys.readouterr().out.split()
        ring = KeyRing(tmp_path / "keys.json")
        valid.append([ring.name_of(key) for key in printed])
    assert valid == [["team-a"], ["team-a", "team-a"], [None, "team-a"], [None, None]]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("serve run ")])
def test_arguments_of_serve_run_are_those_of_the_application(command: str) -> None:
    target, *pairs = shlex.split(command)[2:]
    assert target == "serve.app:build_app"
    ServeArgs.model_validate(dict(pair.split("=", 1) for pair in pairs))


def test_the_config_file_is_one_that_serve_deploys() -> None:
    """Serve checks neither the arguments of an application nor the names of its options."""
    read = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text(encoding="utf-8"))
    deployed = ServeDeploySchema.model_validate(read)
    (application,) = deployed.applications
    ServeArgs.model_validate(application.args)
    assert read["http_options"].keys() <= type(deployed.http_options).model_fields.keys()
    assert deployed.http_options.host == "127.0.0.1"
    assert deployed.http_options.request_timeout_s is not None
