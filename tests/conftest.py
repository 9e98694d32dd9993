"""Every test: its own cache folder, a fixed seed, one torch thread (two on a busy two-core machine are slower)."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SPECTRAL_ADAPTERS_CACHE", str(tmp_path_factory.mktemp("basis-cache")))
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def base():
    """The tiny base, shared by the tests of one file, which leave it as it was."""
    from spectral_adapters.trainer.models import load_base  # brings diffusers, which most files do not need

    return load_base("tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A basis cache that the tests of one file fill together."""
    from spectral_adapters import BasisCache

    return BasisCache(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A studio that is not started, with the dataset own/mugs; shared by the tests of one file."""
    from panel_server import make_studio
    from training import write_pictures

    folder = tmp_path_factory.mktemp("studio")
    write_pictures(folder / "own" / "mugs")
    made = make_studio(folder, own=folder / "own")
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(studio):
    """Calls the routes of the file's studio, through a real server."""
    from panel_server import serving

    with serving(studio) as client:
        yield client
