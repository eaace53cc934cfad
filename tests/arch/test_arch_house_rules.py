"""The house rules that a program can hold: sizes, imports, READMEs, fresh stubs' shape."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("potluck", "sampling", "coordinator", "expert_node", "router")
FOLDERS = (*PACKAGES, "proto", "tests", "benchmarks", "tools", "docs", "deploy")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


def _sources() -> list[Path]:
    roots = [ROOT / name for name in (*PACKAGES, "tools", "benchmarks", "tests")]
    return [p for root in roots for p in sorted(root.rglob("*.py")) if "potluck/v1" not in p.as_posix()]


def test_no_file_exceeds_500_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in _sources() if (n := len(p.read_text().splitlines())) > MAX_FILE_LINES}
    assert not long


def test_no_function_exceeds_60_lines() -> None:
    long: list[str] = []
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines")
    assert not long


def test_every_top_level_folder_opens_with_a_short_readme() -> None:
    for folder in FOLDERS:
        readme = ROOT / folder / "README.md"
        assert readme.exists(), f"{folder}/README.md is missing"
        assert len(readme.read_text().splitlines()) <= 20, f"{folder}/README.md should be about ten lines"


def test_nothing_unpickles() -> None:
    for path in _sources():
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "cPickle", "dill", "shelve", "marshal"} & set(names), f"{path} imports {names}"


@pytest.mark.parametrize("forbidden", ["torch", "grpc", "numpy", "rich"])
def test_the_command_line_starts_without_heavy_imports(forbidden: str) -> None:
    code = f"import sys, potluck.cli; sys.exit({forbidden!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_imports_keep_to_the_contracts() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(tool), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
