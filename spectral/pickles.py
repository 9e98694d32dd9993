"""Read the tensors of another tool's pickle (.pt, .pth) without letting it run anything."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from .container import open_file, refusal

_ADVICE = "It holds more than tensors, or is damaged; ask its author for another form, and open it nowhere else either"


def read_pickle(path: Path) -> object:
    """What torch.save wrote: tensors in dicts and lists, mapped from the file and read when they are used.

    Only tensors and plain containers are made (weights_only). Raises AdapterFileError for anything else.
    """
    open_file(path).close()  # says what is wrong with a path
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # not in torch's zip form, which alone can be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as e:
        found = str(e).strip().splitlines()[0][:120] if str(e).strip() else type(e).__name__
        raise refusal(path, "its contents", found, "a pickle of tensors alone", _ADVICE) from e
