"""The page's files: no text becomes markup, nothing is fetched from elsewhere, no string is missing, all parse."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "web"
SCRIPTS = sorted(WEB.rglob("*.js"))
PAGES = sorted([*WEB.rglob("*.html"), *WEB.rglob("*.svg")])
STYLES = sorted(WEB.rglob("*.css"))

# What makes markup or code out of text, or starts code from markup.
MARKUP = re.compile(
    r"\b(innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|srcdoc|DOMParser|setHTMLUnsafe)\b"
    r"|document\.write|\beval\s*\(|new Function\b|javascript:|setTimeout\(\s*[\"'`]"
)
HANDLER = re.compile(r"<[^>]*\son[a-z]+\s*=|<[^>]*\sstyle\s*=|<script(?![^>]*\ssrc=)[^>]*>", re.IGNORECASE)
REMOTE = re.compile(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", re.IGNORECASE)
NAMESPACES = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml")

CALL = re.compile(r"\bt(?:\.or)?\(\s*([^,()]*(?:\([^()]*\)[^,()]*)*)")
LITERAL = re.compile(r'"([\w.]+)"')
PREFIX = re.compile(r"`([\w.]+\.)\$\{")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def without_comments(text: str) -> str:
    """JavaScript without its comments; a "//" in a string with a colon before it stays."""
    text = re.sub(r"(?<!\S)/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"(?<![:\"'`])//[^\n]*", "", text)


def strings() -> dict[str, str]:
    """The panel's English strings by key; a choice by number is one entry."""
    found = json.loads(read(ROOT / "locales" / "en" / "main.json"))["spectralAdapters"]
    return dict(flat(found, ""))


def flat(table: dict, prefix: str):
    for name, value in table.items():
        if isinstance(value, str):
            yield prefix + name, value
        elif "other" in value:
            yield prefix + name, value["other"]
        else:
            yield from flat(value, f"{prefix}{name}.")


def test_there_is_something_to_check():
    assert len(SCRIPTS) > 15 and PAGES and STYLES


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(WEB).as_posix())
def test_scripts_make_no_markup_from_text(path):
    found = MARKUP.search(without_comments(read(path)))
    assert found is None, f"{path.name}: {found.group(0)}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_have_no_inline_code(path):
    found = HANDLER.search(read(path)) or MARKUP.search(read(path))
    assert found is None, f"{path.name}: {found.group(0)}"


@pytest.mark.parametrize("path", [*SCRIPTS, *PAGES, *STYLES], ids=lambda path: path.relative_to(WEB).as_posix())
def test_nothing_is_fetched_from_elsewhere(path):
    text = without_comments(read(path)) if path.suffix == ".js" else read(path)
    for namespace in NAMESPACES:
        text = text.replace(namespace, "")
    found = REMOTE.search(text)
    assert found is None, f"{path.name}: {found.group(0)}"


@pytest.mark.parametrize("path", [*SCRIPTS, *STYLES], ids=lambda path: path.relative_to(WEB).as_posix())
def test_lines_are_short(path):
    if path.suffix == ".js":
        assert max(map(len, read(path).splitlines()), default=0) <= 120


def keys(text: str) -> tuple[set[str], set[str], list[str]]:
    """(keys, beginnings of keys, arguments that are neither) of the calls of t in a script.

    An argument is "a.key", `a.beginning.${...}`, or a choice of such by ?:.
    """
    used, prefixes, other = set(), set(), []
    for argument in CALL.findall(without_comments(text)):
        choices = argument.split("?", 1)[1].split(" : ") if " ? " in argument else [argument]
        for choice in map(str.strip, choices):
            if found := LITERAL.fullmatch(choice):
                used.add(found.group(1))
            elif found := PREFIX.match(choice):
                prefixes.add(found.group(1))
            else:
                other.append(choice)
    return used, prefixes, other


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(WEB).as_posix())
def test_strings_used_are_there(path):
    used, _, other = keys(read(path))
    missing = sorted(used - strings().keys())
    assert not missing, f"{path.name} uses {missing}, which locales/en/main.json lacks"
    assert not other, f"{path.name}: keys that are not written out cannot be checked: {other}"


def test_no_string_is_left_over():
    found = [keys(read(path)) for path in SCRIPTS]
    used = {"language"}.union(*(each for each, _, _ in found))
    prefixes = tuple(set().union(*(each for _, each, _ in found)))
    left = [key for key in strings() if key not in used and not key.startswith(prefixes)]
    assert not left, f"locales/en/main.json has {left}, which nothing uses"


def test_strings_of_other_languages_fill_in_the_same_names():
    """A translation says its language, has no key that English lacks (the form's words aside), the same {names}."""
    known = strings()
    for path in sorted((ROOT / "locales").glob("*/main.json")):
        own = dict(flat(json.loads(read(path)).get("spectralAdapters", {}), ""))
        assert own.get("language") == path.parent.name
        for key, text in own.items():
            if key.startswith("form."):
                continue
            assert key in known, f"{path.parent.name}: {key}"
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", known[key])), (path.parent.name, key)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(WEB).as_posix())
def test_imports_exist(path):
    for name in re.findall(r"""(?:from|import)\s*\(?\s*"(\.[^"]+)\"""", without_comments(read(path))):
        if name.startswith("../../") and "scripts/" in name:
            continue  # ComfyUI's own
        assert (path.parent / name).is_file(), f"{path.name} imports {name}"


def test_scripts_parse():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    for path in SCRIPTS:
        check = [node, "--check", "--input-type=module"]
        done = subprocess.run(check, input=read(path), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{path.name}: {done.stderr}"
