"""install.py as its hosts run it: a process of its own, by the Manager once, by a web UI at every start."""

import ast
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

import spectral_adapters as sa
from spectral_adapters.install import missing

ROOT = Path(sa.__file__).parent


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.fixture
def web_ui(tmp_path):
    """The root of a web UI as far as it matters: its launcher, which starts everything when it is imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "__init__.py").touch()
    (tmp_path / "launch.py").write_text("raise SystemExit('the web UI was started')\n")
    return tmp_path


def install(python=sys.executable, path=""):
    """What the hosts do: the interpreter, the file, their root on PYTHONPATH. A web UI prints what it says."""
    command, started = [str(python), str(ROOT / "install.py")], time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(path)}
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout, time.perf_counter() - started


def test_nothing_is_said_where_nothing_is_missing(web_ui):
    assert install()[0] == ""
    assert install(path=f"{web_ui}{os.pathsep}")[0] == ""


def test_the_manager_hears_what_training_needs(bare):
    said, _ = install(bare)
    assert "training needs" in said and "diffusers" in said and "applying adapters works without" in said
    assert "pip install" in said and "torch" not in said


def test_a_web_ui_hears_only_of_what_applying_needs(bare, web_ui):
    said, _ = install(bare, f"{web_ui}{os.pathsep}")
    assert said.count("\n") == 1
    assert "torch, numpy, safetensors cannot be found" in said and str(bare) in said
    for word in ("diffusers", "pip install", "training"):
        assert word not in said
    for name in ("torch", "numpy", "safetensors"):
        (web_ui / name).mkdir()
        (web_ui / name / "__init__.py").write_text("raise SystemExit('imported')\n")
    assert install(bare, web_ui)[0] == "", "what training needs is no matter there"


def test_another_package_named_launch_is_no_web_ui(bare, tmp_path):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "__init__.py").touch()
    assert "training needs" in install(bare, tmp_path)[0]


def test_it_is_quick_and_imports_nothing_but_the_standard_library(web_ui):
    tree = ast.parse((ROOT / "install.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
    assert min(install(path=web_ui)[1] for _ in range(3)) < 1  # 0.04 s where nothing else runs


def test_the_packages_of_a_list_that_are_missing(tmp_path):
    listed = tmp_path / "requirements.txt"
    listed.write_text("numpy\npillow  # pictures\n\nno_such_package_at_all\n", encoding="utf-8")
    assert missing(listed) == ["no_such_package_at_all"]
