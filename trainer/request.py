"""What a page, a node or a tool asks to be trained: names instead of paths, and only what the user has set.

Needs no torch. Everything in a request is checked here or by `Places`, which alone turns names into paths.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..spectral.errors import SettingError
from .contents import contained
from .engines import BUILT_IN, ENGINES, Engine
from .jobs.job import DEVICE, Options
from .layering import DEFAULT_PRESET, over_preset
from .presets import NO_PRESET, PRESETS, known_method
from .spec import TrainSpec, plain, read_value, settings

if TYPE_CHECKING:
    from .places import Places

DATASETS = ("masks", "class_images", "validation_images")
ADAPTERS = ("start_from", "avoid")
PLAN = "column_plan"
# The rest of TrainSpec names places, or is a field of the request itself.
_WITHHELD = ("base", "images", "out", "preset", "tokenizer", "cache_dir", "run", "device")
_FIELDS = {each.name: each for each in settings() if each.name not in _WITHHELD}
OFFERED = tuple(_FIELDS)

# TrainSpec.optimizer is an import path: from a request only these are imported.
OPTIMIZERS = {
    "torch.optim.AdamW": "torch",
    "torch.optim.Adam": "torch",
    "torch.optim.NAdam": "torch",
    "torch.optim.RAdam": "torch",
    "torch.optim.Adamax": "torch",
    "torch.optim.Adagrad": "torch",
    "torch.optim.RMSprop": "torch",
    "torch.optim.SGD": "torch",
    "prodigyopt.Prodigy": "prodigyopt",
    "bitsandbytes.optim.AdamW8bit": "bitsandbytes",
}
# The most that a request may ask for: far beyond use, and little enough to be refused before it costs anything.
MOST: dict[str, float] = {
    **dict.fromkeys(("steps", "warmup", "checkpoint_every", "validate_every", "sample_every"), 100_000),
    **dict.fromkeys(("patience", "keep_tags", "keep", "cycles", "validation", "accumulation"), 1000),
    **dict.fromkeys(("lr", "text_lr", "norm_lr", "prior_weight", "weight_decay", "noise_offset"), 100),
    **dict.fromkeys(("min_snr_gamma", "clip", "sample_guidance"), 1000),
    **dict.fromkeys(("seed", "sample_seed"), 2**53 - 1),  # what JavaScript counts exactly
    "rank": 4096,
    "resolution": 2048,
    "class_count": 2000,
    "batch_size": 64,
    "sample_steps": 200,
    "dco_beta": 1_000_000,
}
LEAST: dict[str, float] = {"rank": 1, "resolution": 16, "weight_decay": 0, "seed": 0, "sample_seed": 0}
LONGEST = {
    "description": 4000,
    "title": 200,
    "licence": 200,
    "trigger": 200,
    "columns": 500,
    "targets": 200,
    "concept": 100,
}
_TEXT = 500  # characters of any other text
_ITEMS = 16  # of a list or a table
_NAME = 300  # characters of a name of something
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # all but tab and newline


@dataclass(frozen=True)
class Request:
    """A training in the words of the person who wants it. settings: TrainSpec's names, with names for places.

    base, dataset: as `Places` names them. device: "auto", "cpu" or "cuda:N". engine: what trains; which program that
    is, no request says.
    """

    name: str
    base: str
    dataset: str
    preset: str = DEFAULT_PRESET
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    options: Options = field(default_factory=Options)
    engine: Engine = BUILT_IN

    @classmethod
    def from_json(cls, given: object) -> Request:
        """A checked request. Raises SettingError for unknown keys, wrong types and values beyond every use."""
        table = _table("request", given, tuple(each.name for each in fields(cls)))
        for key in ("name", "base", "dataset"):
            if key not in table:
                raise SettingError(f"the request has no {key}; a training needs a name, a base and a dataset")
        texts = {
            key: _text(key, table[key], _NAME)
            for key in ("name", "base", "dataset", "preset", "device", "engine")
            if key in table
        }
        if (preset := texts.get("preset", DEFAULT_PRESET)) not in (*PRESETS, NO_PRESET):
            raise SettingError(f"preset={preset!r}; expected one of {', '.join((*PRESETS, NO_PRESET))}")
        if not DEVICE.fullmatch(texts.get("device", "auto")):
            raise SettingError(f"device={texts['device']!r}; expected auto, cpu or cuda:N")
        if (engine := texts.get("engine", BUILT_IN)) not in ENGINES:
            raise SettingError(f"engine={engine!r}; expected one of {', '.join(ENGINES)}")
        chosen = _table("settings", table.get("settings", {}), OFFERED)
        return cls(
            **texts,
            settings={name: _setting(name, value) for name, value in chosen.items()},
            options=_options(table.get("options", {})),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` reads them."""
        return asdict(self) | {"settings": dict(self.settings)}


def resolve(request: Request, places: Places, taken: Collection[Path] = ()) -> TrainSpec:
    """The run that a request asks for, with absolute paths; its adapter file is a free name that is not `taken`.

    Raises SettingError for a name that is not known, and for settings that cannot be honoured whatever the base.
    """
    chosen = {"base": places.base(request.base), "preset": request.preset, **_placed(request, places)}
    if request.device == "cpu":
        chosen["device"] = "cpu"
    images, out = contained(places, request.dataset), places.free_out(request.name, taken)
    spec = TrainSpec.from_mapping({**over_preset(chosen), "images": str(images), "out": str(out)})
    known_method(spec.method)
    spec.check_values()
    if spec.class_images is not None and spec.class_images.resolve() == spec.images.resolve():
        raise SettingError(
            f"class_images: {request.dataset} is the dataset itself, and class pictures are generated into their "
            "folder; choose another dataset for them"
        )
    return spec


def _placed(request: Request, places: Places) -> dict[str, Any]:
    """The settings with paths for names."""
    values = dict(request.settings)
    for name in DATASETS:
        if values.get(name) is not None:
            values[name] = str(contained(places, values[name]))
    if values.get("start_from") is not None:
        values["start_from"] = str(places.adapter(values["start_from"]))
    if values.get("column_plan") is not None:
        values["column_plan"] = str(places.plan(values["column_plan"]))
    if values.get("avoid"):
        values["avoid"] = [str(places.adapter(name)) for name in values["avoid"]]
    return values


def digest(request: Request, places: Places) -> str:
    """64 hex digits that are the same for the same training: the request but for its options, and what it reads.

    Files count by name, size and time of change. The folder of class pictures does not: the training itself fills it.
    """
    asked = {key: value for key, value in request.as_json().items() if key != "options"}
    if request.engine == BUILT_IN:  # as it was before there was another
        del asked["engine"]
    values = request.settings
    folders = [places.dataset(values[name]) for name in ("masks", "validation_images") if values.get(name)]
    names = [*([values["start_from"]] if values.get("start_from") else []), *(values.get("avoid") or ())]
    base = places.base(request.base)
    read = [
        *(list(_listing(folder)) for folder in (places.dataset(request.dataset), *folders)),
        [_stamp(places.adapter(name)) for name in names],
        [_stamp(places.plan(values["column_plan"]))] if values.get("column_plan") else [],
        [] if base == "tiny" else [_stamp(Path(base))],
    ]
    return hashlib.sha256(json.dumps([asked, read], sort_keys=True).encode()).hexdigest()


def _listing(folder: Path) -> Iterator[list[Any]]:
    """What a training can read of a dataset: its files and those of its folders, in name order."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            inner = sorted(Path(entry.path).iterdir())
            yield [entry.name, [_stamp(path) for path in inner if path.is_file()]]
        else:
            yield _stamp(Path(entry.path))


def _stamp(path: Path) -> list[Any]:
    found = path.stat()
    return [path.name.encode("utf-8", "backslashreplace").decode(), found.st_size, found.st_mtime_ns]


def installed_optimizers() -> list[str]:
    """The optimisers that a request may name and that are there."""
    return [path for path, package in OPTIMIZERS.items() if find_spec(package) is not None]


def _table(what: str, given: object, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise SettingError(f"the {what} is a {type(given).__name__}; expected names and values")
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise SettingError(f"{str(key)[:_NAME]!r} is not known in the {what}; {hint}")
    return given


def _options(given: object) -> Options:
    table = _table("options", given, tuple(each.name for each in fields(Options)))
    for key, value in table.items():
        if not isinstance(value, bool):
            raise SettingError(f"options: {key}={value!r}; expected true or false")
    return Options(**table)


def _text(key: str, value: object, longest: int) -> str:
    if not isinstance(value, str):
        raise SettingError(f"{key} is a {type(value).__name__}; expected a text")
    if len(value) > longest:
        raise SettingError(f"{key} has {len(value)} characters; expected at most {longest}")
    if _CONTROL.search(value):
        raise SettingError(f"{key} holds a control character; expected plain text")
    return value


def _setting(name: str, value: object) -> Any:
    """A setting's plain value, or None for its own default. Raises SettingError."""
    if value is None and _FIELDS[name].default is None:
        return None
    if name in (*DATASETS, "start_from", PLAN):
        return _text(name, value, _NAME)
    try:
        read = plain(read_value(name, value)) if name != "avoid" else value
        _check(name, read)
    except OverflowError as error:
        raise SettingError(f"{name} is a number beyond every use") from error
    return read


def _check(name: str, value: object) -> None:
    if isinstance(value, str):
        _text(name, value, LONGEST.get(name, _TEXT))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(name, value)
    elif name == "optimizer_args":
        _check_arguments(name, value)
    elif not isinstance(value, bool):
        _check_texts(name, value)
    if name == "optimizer" and value not in OPTIMIZERS:
        raise SettingError(f"optimizer={value!r}; expected one of {', '.join(OPTIMIZERS)}")


def _check_number(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise SettingError(f"{name}={value}; expected a finite number")
    if value > MOST.get(name, math.inf):
        raise SettingError(f"{name}={value:g}; expected at most {MOST[name]:g}")
    if value < LEAST.get(name, -math.inf):
        raise SettingError(f"{name}={value:g}; expected at least {LEAST[name]:g}")


def _check_texts(name: str, items: object) -> None:
    if not isinstance(items, list):
        raise SettingError(f"{name} is a {type(items).__name__}; expected a list of texts")
    if len(items) > _ITEMS:
        raise SettingError(f"{name} has {len(items)} items; expected at most {_ITEMS}")
    for item in items:
        _text(name, item, _TEXT)


def _check_arguments(name: str, table: Mapping[Any, Any]) -> None:
    if len(table) > _ITEMS:
        raise SettingError(f"{name} has {len(table)} items; expected at most {_ITEMS}")
    for key, value in table.items():
        parts = value if isinstance(value, list) else [value]
        if not (isinstance(key, str) and key.isidentifier() and len(key) <= 50 and len(parts) <= 4):
            raise SettingError(f"{name}: {str(key)[:50]!r} is no argument with a plain value")
        for part in parts:
            if isinstance(part, str):
                _text(name, part, 50)
            elif not isinstance(part, (bool, int, float)):
                raise SettingError(f"{name}: {key} is a {type(part).__name__}; expected numbers, texts, true or false")
            elif not math.isfinite(part):
                raise SettingError(f"{name}: {key}={part}; expected a finite number")
