"""Plans of columns as files: JSON, written whole, never over another."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..spectral.column_plan import Plan
from ..spectral.errors import SettingError
from . import files
from .places import PLAN_SUFFIX, PLANS, NameTaken, check_name, inside

if TYPE_CHECKING:
    from .places import Places

_LARGEST = 1 << 20  # bytes


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises SettingError, with the file, for one that cannot be read or is none."""
    try:
        if path.stat().st_size > _LARGEST:
            raise SettingError(f"{path}: found {path.stat().st_size:,} bytes, expected a plan of at most {_LARGEST:,}")
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(f"{path}: found {error}, expected a plan of columns; make one with `plan`") from error
    try:
        return Plan.from_json(values)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from error


def write_plan(plan: Plan, path: Path) -> Path:
    """Write a plan, whole or not at all; its path. Raises SettingError for another ending and for a file that is there,
    SpectralError where it cannot be written.
    """
    if path.suffix != PLAN_SUFFIX:
        raise SettingError(f"{path}: found another ending, expected a name ending in {PLAN_SUFFIX}")
    if os.path.lexists(path):
        raise SettingError(f"{path}: found an existing file, expected a new name; plans are never overwritten")
    if not path.absolute().parent.is_dir():
        raise SettingError(f"{path}: found no folder {path.absolute().parent}, expected an existing one")
    try:
        files.write_bytes(path, json.dumps(plan.as_json(), indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise files.refusal("writing a plan", path, error, "Choose another folder") from error
    return path


def keep(places: Places, name: str, plan: Plan) -> str:
    """Keep a plan among those that trainings choose from; its name. Raises NameFault, NameTaken."""
    folder = places.home / PLANS
    stem = check_name(name.removesuffix(PLAN_SUFFIX), "save")
    if stem.casefold() in {known.casefold() for known in places.plan_files()}:
        raise NameTaken(f"save: there is a plan named {stem} already; choose another name.")
    try:
        files.make_folder(folder)
    except OSError as error:
        raise files.refusal("making the folder of plans", folder, error, "Choose another home folder") from error
    return write_plan(plan, inside(folder, f"{stem}{PLAN_SUFFIX}")).stem
