"""Adapters told from other files by their headers, in folders of thousands."""

import json
import os
import time

import pytest
from adapters import adapter_of, put_together, take_apart

import spectral_adapters as sa
from spectral_adapters.spectral import known_files
from spectral_adapters.spectral.known_files import MARK, KnownFiles, is_adapter
from spectral_adapters.spectral.open import open_source

ENTRY = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}


@pytest.fixture
def adapter(tmp_path):
    made, _ = adapter_of("additive", {"rank": 4})
    return sa.save(made, tmp_path / "dog.safetensors")


def file_of(path, table, data=bytes(4)):
    path.write_bytes(put_together(table, data))
    return path


def test_files_of_every_profile_are_known(tmp_path):
    for profile in ("portable", "compact"):
        made, _ = adapter_of("rotation", {"rank": 3})
        assert is_adapter(sa.save(made, tmp_path / f"{profile}.safetensors", profile=profile))


def test_an_exported_lora_is_none_although_it_names_our_module(adapter, tmp_path):
    from spectral_adapters.spectral.export import write_export

    source = open_source(adapter)
    path = tmp_path / "lora.safetensors"
    write_export(sa.to_lora(source), source, path)
    assert not is_adapter(path)


@pytest.mark.parametrize("where", ["first", "last", "long"])
def test_metadata_is_found_wherever_it_stands(where, tmp_path):
    metadata = {"ss_tag_frequency": "x" * (200_000 if where == "long" else 10), MARK: "1"}
    table = {"__metadata__": metadata, "a": ENTRY} if where != "last" else {"a": ENTRY, "__metadata__": metadata}
    assert is_adapter(file_of(tmp_path / "a.safetensors", table))


def test_the_mark_counts_in_metadata_only(tmp_path):
    told = {"ss_training_comment": f'"{MARK}"'}
    for number, table in enumerate(
        ({"__metadata__": told, "a": ENTRY}, {"a": ENTRY, "__metadata__": told}, {MARK: ENTRY}, {"a": ENTRY})
    ):
        assert not is_adapter(file_of(tmp_path / f"{number}.safetensors", table))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"12345",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (40).to_bytes(8, "little") + b'{"__metadata__":{"spectral.format_version"',
        (60).to_bytes(8, "little") + b"[" * 40 + b'"spectral.format_version"',
        put_together({"__metadata__": ["spectral.format_version"]}, b""),
        put_together(b'["spectral.format_version"]', b""),
        put_together(b'{"__metadata__":{"spectral.format_version":"\xff"', b""),
        b"<!DOCTYPE html>" + b" " * 100,
    ],
)
def test_what_is_broken_is_no_adapter_and_no_error(data, tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    assert not is_adapter(path)
    assert KnownFiles().adapters([str(path)]) == set()


def test_what_is_not_there_or_no_file_is_left_out(adapter, tmp_path):
    paths = [str(adapter), str(tmp_path), str(tmp_path / "gone"), "a\0b"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        paths.append(str(tmp_path / "pipe.safetensors"))
    assert KnownFiles().adapters(paths) == {str(adapter)}


@pytest.fixture
def reads(monkeypatch):
    """The paths whose headers are read."""
    found = []

    def watched(path):
        found.append(str(path))
        return is_adapter(path)

    monkeypatch.setattr(known_files, "is_adapter", watched)
    return found


def test_a_header_is_read_once_and_again_when_the_file_has_changed(adapter, tmp_path, reads):
    other = file_of(tmp_path / "lora.safetensors", {"a": ENTRY})
    known, paths = KnownFiles(), [str(adapter), str(other)]
    assert known.adapters(paths) == known.adapters(paths) == {str(adapter)}
    assert sorted(reads) == sorted(paths)
    header, data = take_apart(adapter)
    file_of(other, header, data)
    assert known.adapters(paths) == {str(adapter), str(other)}
    assert reads[2:] == [str(other)]


def test_the_store_spares_the_next_process_the_reading(adapter, tmp_path, reads):
    store, paths = tmp_path / "user" / "store.json", [str(adapter)]
    assert KnownFiles(store).adapters(paths) == {str(adapter)}
    assert KnownFiles(store).adapters(paths) == {str(adapter)}
    assert len(reads) == 1
    assert [path.name for path in store.parent.iterdir()] == ["store.json"]
    assert KnownFiles(store).adapters([]) == set() and json.loads(store.read_bytes()) == {}


@pytest.mark.parametrize(
    "text", ["", "[1]", "null", '{"a": 1}', '{"a": [1, 2]}', "[" * 100_000, '{"a": ["b", 1, true]}']
)
def test_a_broken_store_is_written_anew(text, adapter, tmp_path):
    store = tmp_path / "store.json"
    store.write_text(text)
    assert KnownFiles(store).adapters([str(adapter)]) == {str(adapter)}
    assert list(json.loads(store.read_bytes())) == [str(adapter)]


def test_a_store_that_cannot_be_written_is_no_error(adapter, tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    assert KnownFiles(tmp_path / "taken" / "store.json").adapters([str(adapter)]) == {str(adapter)}


def test_thousands_of_files_that_are_known_are_listed_in_a_moment(tmp_path):
    table = {"__metadata__": {"ss_network_module": "networks.lora"}, "a": ENTRY}
    paths = [str(file_of(tmp_path / f"{number}.safetensors", table)) for number in range(1000)]
    known = KnownFiles()
    known.adapters(paths)
    start = time.perf_counter()
    known.adapters(paths)
    assert time.perf_counter() - start < 1  # 5 ms where nothing else runs
