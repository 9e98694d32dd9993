"""Names and places: nothing that a name says leads out of a root, and what lies inside is found."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.trainer.contents import MOST_ENTRIES, contained, contents
from spectral_adapters.trainer.places import (
    NameFault,
    Places,
    check_name,
    inside,
    is_shown,
    quoted,
    read_roots,
    standalone,
)

# What has led out of folders in other programs, by the trick.
TRAVERSALS = (
    "..", ".", "../x", "..\\x", "a/../../x", "/etc/passwd", "\\\\server\\share", "//server/share", "C:",
    "C:\\x", "c:x", "x:stream",
    "x::$DATA", "CON", "nul.png", "Aux.txt", "com1", "LPT9.jpg", "COM¹", "conin$", "x.", "x ", " x",
    ".hidden",
    "a\0b", "a\nb", "\x7f", "x\u202egnp.exe", "\u2066x", "~", "%2e%2e", "", "x" * 101, "ä" * 150, "\ud800", "a|b",
    "a?", "a*", 'a"b', "<b>", "....", ". .", "..;", "\u2028",
)  # fmt: skip
HARMLESS = {"~", "%2e%2e"}  # odd names, but names: nothing here expands or decodes them


@pytest.fixture
def root(tmp_path) -> Path:
    """A root with a dataset, beside a folder that is none of its business."""
    for folder in ("root/dog/10_dog", "outside/secret"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "root/dog/1.png").write_bytes(b"a picture")
    (tmp_path / "outside/secret.png").write_bytes(b"a secret")
    return tmp_path / "root"


def places(tmp_path: Path, **roots: Path) -> Places:
    return standalone(tmp_path / "home", roots, [])


@pytest.mark.parametrize("name", TRAVERSALS, ids=ascii)
def test_no_trick_is_a_name(name):
    if name in HARMLESS:
        assert check_name(name, "name") == name
    else:
        with pytest.raises(NameFault, match="name: found"):
            check_name(name, "name")


@pytest.mark.parametrize(
    "name", ["dog", "my dog 2", "Ünïcode", "日本語", "a.b", "x-1_2", "console", "com", "nulls.png", "x" * 100]
)
def test_names(name):
    assert check_name(name, "name") == name


def test_names_are_composed():
    assert check_name("u\u0308ber", "name") == "über"


@pytest.mark.parametrize("value", [None, 3, ["a"], b"a", {}])
def test_what_is_no_text_is_no_name(value):
    with pytest.raises(NameFault, match="expected a text"):
        check_name(value, "name")


@given(st.text(max_size=120))
def test_what_passes_is_one_component_on_every_system(text):
    try:
        name = check_name(text, "name")
    except NameFault:
        return
    assert Path(name).name == name and is_shown(name) and not set(name) & set('/\\:*?"<>|\0')
    assert len(os.fsencode(name)) <= 200 and check_name(name, "name") == name


@pytest.mark.parametrize("part", TRAVERSALS, ids=ascii)
def test_nothing_leads_out(root, part):
    for parts in ([part], ["dog", part], [part, "1.png"], [part, part]):
        try:
            path = inside(root, *parts)
        except NameFault:
            continue
        assert part in HARMLESS and root in path.parents


def test_inside_and_not_yet_there(root):
    assert inside(root) == root and inside(root, "dog", "1.png") == root / "dog/1.png"
    assert inside(root, "new", "er") == root / "new/er"


def test_links_out_are_refused_and_links_inside_are_not(root):
    (root / "away").symlink_to(root.parent / "outside")
    (root / "dog/away.png").symlink_to(root.parent / "outside/secret.png")
    (root / "dog/dangling.png").symlink_to(root.parent / "outside/nothing.png")
    (root / "dog/same.png").symlink_to("1.png")
    (root / "dog/circle.png").symlink_to("circle.png")
    for parts in (["away"], ["away", "secret.png"], ["dog", "away.png"], ["dog", "dangling.png"], ["away", "new"]):
        with pytest.raises(NameFault, match="link that leads out of"):
            inside(root, *parts)
    assert inside(root, "dog", "same.png").read_bytes() == b"a picture"
    assert inside(root, "dog", "circle.png") == root / "dog/circle.png"  # leads nowhere; opening it fails


def test_a_root_may_be_a_link(root, tmp_path):
    (tmp_path / "linked").symlink_to(root)
    assert inside(tmp_path / "linked", "dog", "1.png") == tmp_path / "linked/dog/1.png"
    (root / "up").symlink_to(tmp_path)
    with pytest.raises(NameFault):
        inside(tmp_path / "linked", "up", "outside")


def test_a_neighbour_whose_name_begins_alike_is_outside(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "rooted").mkdir()
    (tmp_path / "root/x").symlink_to(tmp_path / "rooted")
    with pytest.raises(NameFault):
        inside(tmp_path / "root", "x")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_an_odd_name_of_a_file_that_is_there(root):
    for name in ("Screenshot 12:30:11.png", "what?.png", "u\u0308.png", "x" * 200 + ".png", " .png"):
        (root / "dog" / name).write_bytes(b"x")
        assert inside(root, "dog", name).read_bytes() == b"x"
    for name in ("a\nb.png", ".hidden.png", "a\\b.png"):
        (root / "dog" / name).write_bytes(b"x")
        with pytest.raises(NameFault):
            inside(root, "dog", name)


def test_contents(root):
    (root / "dog/away.png").symlink_to(root.parent / "outside/secret.png")
    (root / "dog/far").symlink_to(root.parent / "outside")
    (root / "dog/.hidden").write_bytes(b"")
    (root / "dog/b\u202e.png").write_bytes(b"")
    found = contents(root, root / "dog")
    assert (found.files, found.folders, found.leaving, found.strange) == (["1.png"], ["10_dog"], ["away.png", "far"], 1)
    assert "away.png, far: left out, since" in found.notes[0] and "1 files with unprintable names" in found.notes[1]


def test_contents_are_capped(root, monkeypatch):
    monkeypatch.setattr("spectral_adapters.trainer.contents.MOST_ENTRIES", 5)
    for i in range(9):
        (root / f"dog/{i}.png").write_bytes(b"")
    found = contents(root, root / "dog")
    assert len(found.files) + len(found.folders) == 5 and "only the first 5 files" in found.notes[0]
    assert MOST_ENTRIES >= 10_000


def test_datasets_are_known_by_their_ids(root, tmp_path):
    where = places(tmp_path, pets=root)
    assert where.dataset("pets/dog") == root / "dog" and where.dataset("pets") == root
    assert where.dataset("pets/dog/10_dog") == root / "dog/10_dog"
    for id in ("pets/cat", "pets/dog/1.png", "pets/", "pets//dog"):
        with pytest.raises(NameFault):
            where.dataset(id)
    with pytest.raises(NameFault, match="one of the roots: datasets, pets"):
        where.dataset("outside/secret")


@pytest.mark.parametrize("trick", TRAVERSALS, ids=ascii)
def test_no_id_leads_out(root, tmp_path, trick):
    where = places(tmp_path, pets=root)
    for id in (trick, f"pets/{trick}", f"pets/dog/{trick}", f"{trick}/dog", f"pets/{trick}/{trick}"):
        with pytest.raises(NameFault):
            where.dataset(id)


@pytest.mark.parametrize("id", [None, 1, ["pets"], "pets" + "/x" * 5000])
def test_what_is_no_id(root, tmp_path, id):
    with pytest.raises(NameFault):
        places(tmp_path, pets=root).dataset(id)


def test_a_dataset_to_train_on_holds_nothing_from_outside(root, tmp_path):
    where = places(tmp_path, pets=root)
    assert contained(where, "pets/dog") == root / "dog"
    (root / "dog/10_dog/away.png").symlink_to(root.parent / "outside/secret.png")
    (root / "dog/far").symlink_to(root.parent / "outside")
    with pytest.raises(NameFault, match=r"far, 10_dog/away\.png; expected files inside\. Replace"):
        contained(where, "pets/dog")


def test_bases_and_adapters_are_members(tmp_path):
    models = tmp_path / "models"
    (models / "sub").mkdir(parents=True)
    (models / "a.safetensors").write_bytes(b"")
    (models / "sub/b.SAFETENSORS").write_bytes(b"")
    (models / "notes.txt").write_bytes(b"")
    (models / "diffusers/unet").mkdir(parents=True)
    (models / "diffusers/model_index.json").write_text("{}")
    (models / "diffusers/unet/diffusion.safetensors").write_bytes(b"")
    (models / "circle").symlink_to(models)
    where = standalone(tmp_path / "home", {}, [models, tmp_path / "missing"])
    assert where.base_names() == ["a.safetensors", "diffusers", "sub/b.SAFETENSORS", "tiny"]
    assert where.base("tiny") == "tiny" and where.base("diffusers") == str(models / "diffusers")
    for name in (
        str(models / "a.safetensors"),
        "../models/a.safetensors",
        "b",
        "",
        None,
        ["tiny"],
        "models/a.safetensors",
    ):
        with pytest.raises(NameFault, match=r"expected one of: a\.safetensors, diffusers"):
            where.base(name)
    (where.adapters / "x.safetensors").write_bytes(b"")
    assert where.adapter("x.safetensors") == where.adapters / "x.safetensors"
    with pytest.raises(NameFault):
        where.adapter("../datasets/x.safetensors")


def test_the_first_of_two_models_with_one_name_counts(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.safetensors").write_bytes(b"")
    where = standalone(tmp_path / "home", {}, [tmp_path / "one", tmp_path / "two"])
    assert where.base("a.safetensors") == str(tmp_path / "one/a.safetensors")


def test_a_free_name_for_an_adapter(tmp_path):
    where = places(tmp_path)
    first = where.free_out("dog")
    assert first == where.adapters / "dog.safetensors" == where.free_out("dog.safetensors")
    first.write_bytes(b"")
    (where.adapters / "dog-3.safetensors").symlink_to(tmp_path / "nothing.safetensors")
    second = where.free_out("dog")
    assert second.name == "dog-2.safetensors"
    assert where.free_out("dog", [second.with_name("DOG-2.safetensors")]).name == "dog-4.safetensors"
    for trick in ("../dog", "/tmp/dog", "a/b", "con", "", ".safetensors", "dog:x", None):
        with pytest.raises(NameFault):
            where.free_out(trick)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]


def test_the_folders_of_a_studio(tmp_path):
    where = standalone(tmp_path / "new/home", {}, [])
    assert where.uploads in where.roots() and where.roots()[where.uploads].is_dir() and where.adapters.is_dir()
    assert where.base_names() == ["tiny"] and where.adapter_files() == {}


def test_roots_are_read_anew(root, tmp_path):
    where = places(tmp_path)
    file = where.home / "roots.json"
    file.write_text(json.dumps({"pets": str(root), "unplugged": str(tmp_path / "gone")}), encoding="utf-8-sig")
    assert where.roots() == {"datasets": where.home / "datasets", "pets": root, "unplugged": tmp_path / "gone"}
    assert where.dataset("pets/dog") == root / "dog"
    with pytest.raises(NameFault, match="found no dataset 'unplugged'"):
        where.dataset("unplugged")
    file.unlink()
    assert set(where.roots()) == {"datasets"}


FAULTS = {
    "no JSON": "{pets}",
    "a list": "[]",
    "a number": '{"pets": 3}',
    "a relative path": '{"pets": "pictures"}',
    "a name with a slash": '{"a/b": "/x"}',
    "a device": '{"con": "/x"}',
    "not UTF-8": b'{"\xff": "/x"}',
    "NUL": json.dumps({"pets": "/x\0y"}),
    "nobody's home": '{"pets": "~nobody_of_this_name/x"}',
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_roots_name_the_file(tmp_path, fault):
    content = FAULTS[fault]
    path = tmp_path / "roots.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingError) as caught:
        read_roots(path)
    assert str(path) in str(caught.value) and not isinstance(caught.value, NameFault)
    if "pets" in str(content) and fault != "no JSON":
        assert "pets" in str(caught.value)


def test_a_root_must_not_hold_the_studio(tmp_path):
    home = tmp_path / "home"
    for path in (tmp_path, home, home / "jobs", home / "jobs/x", home / "trash"):
        with pytest.raises(SettingError, match="the studio's own files"):
            standalone(home, {"x": path}, [])
    assert standalone(home, {"mine": home / "mine"}, []).roots()["mine"] == home / "mine"


def test_messages_stay_short_and_printable():
    assert len(quoted("x" * 1000)) <= 80 and "\u202e" not in quoted("a\u202eb") and "\n" not in quoted("a\nb")
