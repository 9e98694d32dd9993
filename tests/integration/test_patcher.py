"""The loader's patches inside ComfyUI's ModelPatcher: storage, loading modes, hooks, merges, staging, refusals."""

import ast
from pathlib import Path

import pytest

CHECKS = [
    node.name
    for node in ast.parse((Path(__file__).parent / "checks_inside.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.mark.parametrize("name", CHECKS)
def test_inside_comfyui(name: str, inside: dict[str, str]) -> None:
    if inside[name].startswith("skip: "):
        pytest.skip(inside[name].removeprefix("skip: "))
    if inside[name] != "ok":
        pytest.fail(inside[name], pytrace=False)
