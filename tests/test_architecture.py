"""The rules of docs/architecture.md that no linter checks: imports at run time, public names, files."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import pytest

import rerank_core

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rerank_core", "jobs", "serve", "cluster")
RUNTIMES = ("ray", "deepspeed", "vllm", "fastapi", "pydantic")
HEAVY = ("torch", "transformers", "pandas", "pyarrow", "numpy")
TREE_LINE = re.compile(r"^(?P<indent> *)(?P<paths>\S+(?: · \S+)*)(?: {2,}(?P<says>\S.*))?$")

# Written in parts, so that this file is not found by its own search.
MACHINE_PATHS = re.compile(r"(?<![\w.~$}/-])/(?:work" + r"|root|opt|home|Users)/\w")
REGISTRY_HOSTS = re.compile(r"\b(?:py" + r"pi\.org|python" + r"hosted\.org|download\.py" + r"torch\.org)")
REGISTRY_OPTIONS = re.compile(r"--(?:extra-)?index" + r"-url")


def modules() -> list[Path]:
    return [
        *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))),
        ROOT / "whyrank.py",
    ]


def tracked_files() -> list[Path]:
    """Return what git would carry: tracked, or new and not ignored."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def shortest_seconds(command: list[str]) -> float:
    """Return the best of three: other processes of the machine can only add to a time."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# --- imports


def test_importing_the_core_loads_neither_a_runtime_nor_a_heavy_library() -> None:
    loaded = run_python("import sys, rerank_core; print(*sys.modules)").split()
    assert {*RUNTIMES, *HEAVY}.isdisjoint(loaded)


def test_the_core_imports_in_under_a_second() -> None:
    assert shortest_seconds([sys.executable, "-c", "import rerank_core"]) < 1.0


def test_no_module_of_the_core_loads_a_runtime_of_ours() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "rerank_core").rglob("*.py"))
    ]
    code = f"import sys, importlib; [importlib.import_module(n) for n in {names}]; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run_python(code).split()}
    assert {"jobs", "serve", "cluster", "whyrank", "ray", "deepspeed", "vllm", "fastapi"}.isdisjoint(loaded)


def test_the_command_line_answers_help_in_under_a_second() -> None:
    assert shortest_seconds([sys.executable, str(ROOT / "whyrank.py"), "--help"]) < 1.0


def imports_bare_serve(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] == "serve" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "serve"


def test_the_bare_name_serve_is_always_rays() -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in modules()
        if any(map(imports_bare_serve, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
    ]
    assert offenders == [], "write `from serve.x import y`"


# --- public names


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in rerank_core.__all__ if not hasattr(rerank_core, name)] == []


def test_what_the_core_offers_is_exactly_what_it_lists() -> None:
    offered = {name for name in dir(rerank_core) if not name.startswith("_")}
    inner_modules = {name for name in offered if isinstance(getattr(rerank_core, name), type(sys))}
    assert offered - inner_modules - {"TYPE_CHECKING", "Any", "annotations"} == set(rerank_core.__all__)


def test_public_names_seen_by_the_type_checker_are_those_loaded_at_run_time() -> None:
    tree = ast.parse((ROOT / "rerank_core" / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    checked = {alias.name: node.module for node in imports for alias in node.names}
    assert checked == rerank_core._MODULE_BY_NAME


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="rerank"):
        _ = rerank_core.rerankk


def test_every_name_that_is_loaded_late_is_its_modules_own_and_documented() -> None:
    for name, module in rerank_core._MODULE_BY_NAME.items():
        value = getattr(importlib.import_module(module), name)
        assert value.__module__ == module
        assert value.__doc__


# --- files


def readme_tree() -> dict[str, str]:
    """Return the paths of README's fenced tree with what is said of each."""
    path = ROOT / "README.md"
    assert path.exists(), "README.md is missing; it must show the tree of the packages in a fenced block"
    blocks = re.findall(r"^```\w*\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    trees = [block for block in blocks if re.search(r"^rerank_core/", block, flags=re.M)]
    assert len(trees) == 1, (
        f"README.md must hold one fenced tree with a line that starts with rerank_core/, not {len(trees)}"
    )
    return parse_tree(trees[0])


def parse_tree(text: str) -> dict[str, str]:
    """Return path -> description of an indented tree; a path ends with "/" where it is a folder."""
    described: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in filter(str.strip, text.splitlines()):
        found = TREE_LINE.match(line)
        assert found, f"this line of README's tree is not `path  what it does`: {line!r}"
        while parents and parents[-1][0] >= len(found["indent"]):
            parents.pop()
        above = parents[-1][1] if parents else ""
        for name in found["paths"].split(" · "):
            described[above + name] = found["says"] or ""
        if found["paths"].endswith("/"):
            parents.append((len(found["indent"]), above + found["paths"]))
    return described


def described_by(path: PurePosixPath, tree: dict[str, str]) -> bool:
    """Return whether a file has a line, or lies under a folder whose files have none of their own."""
    if str(path) in tree:
        return True
    for parent in path.parents:
        folder = f"{parent}/"
        if folder in tree:
            return not any(other != folder and other.startswith(folder) for other in tree)
    return False


def test_a_tree_is_read_by_its_indentation() -> None:
    tree = parse_tree("a/            first\n  b.py        one\n  c/          alike\nd.py · e.py   two\n")
    assert tree == {"a/": "first", "a/b.py": "one", "a/c/": "alike", "d.py": "two", "e.py": "two"}
    assert described_by(PurePosixPath("a/b.py"), tree)
    assert described_by(PurePosixPath("a/c/deep/x.py"), tree)
    assert not described_by(PurePosixPath("a/new.py"), tree)


def test_every_path_in_the_readmes_tree_exists_and_says_what_it_is() -> None:
    tree = readme_tree()
    assert [path for path in tree if not (ROOT / path).exists()] == []
    assert [path for path in tree if path.endswith("/") != (ROOT / path).is_dir()] == []
    assert [path for path, says in tree.items() if not says] == []


def test_every_module_has_its_place_in_the_readmes_tree() -> None:
    tree = readme_tree()
    paths = [PurePosixPath(path.relative_to(ROOT).as_posix()) for path in modules()]
    inner = [path for path in paths if path.name != "__init__.py"]
    assert [str(path) for path in inner if not described_by(path, tree)] == []


@pytest.mark.parametrize(
    "pattern", [MACHINE_PATHS, REGISTRY_HOSTS, REGISTRY_OPTIONS], ids=["paths", "hosts", "options"]
)
def test_no_file_names_a_machine_or_a_registry(pattern: re.Pattern[str]) -> None:
    offenders = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or a table
        lines = [n for n, line in enumerate(text.splitlines(), start=1) if pattern.search(line)]
        offenders += [f"{path.relative_to(ROOT)}:{n}" for n in lines]
    assert offenders == []


def test_pins_are_exact() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[\w.!+]+", pin)] == []


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert headings[:1] == ["[Unreleased]"]
