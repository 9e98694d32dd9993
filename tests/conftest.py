"""Every test: its own cache folder, a fixed seed, one torch thread (two on a busy two-core machine are slower)."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SPECTRAL_ADAPTERS_CACHE", str(tmp_path_factory.mktemp("basis-cache")))
    torch.manual_seed(0)
