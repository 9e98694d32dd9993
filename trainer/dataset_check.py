"""What a training would find in a dataset, told before it begins.

Pictures that were looked at are remembered by name, time and size, so that a page can ask again after every change of a
caption or a setting. One check at a time decodes, and only for so long; a later one goes on where it ended.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from ..spectral.errors import SettingError
from .contents import contained
from .dataset_pictures import rooms_of
from .events import Listener, silent
from .folder import SUFFIXES, Examine, Finding, Folder, Picture, examine_file, scan, shown
from .native import native
from .pictures import Size, bucket_sizes, nearest
from .places import Places
from .spec import TrainSpec

SECONDS = 8.0  # that pictures are decoded for; what is left is said
MOST_PIXELS = 2_048  # of a resolution: what a request may ask for
_REMEMBERED = 20_000
_MOST_FINDINGS = 500
_READ = ("resolution", "buckets", "trigger", "alpha_masks", "prediction")
_FOLDERS = ("masks", "class_images", "validation_images")

Seen = tuple[Picture | None, list[Finding]]
_seen: OrderedDict[tuple, Seen] = OrderedDict()
_one_at_a_time = Lock()
_writing = Lock()


def check(
    places: Places,
    id: str,
    settings: Mapping[str, Any],
    base: str = "",
    listen: Listener = silent,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """{"usable": pictures, "findings": [{"file", "kind", "text", "fatal"}], "sizes": {"512x512": pictures}, "trigger",
    "samples": per epoch, "left": pictures that were not looked at yet}.

    settings: those of TrainSpec that change what is found, with datasets by name; others are passed over. base: its
    name, whose size says how pictures are cut; "" or one whose header does not tell leaves that out. Raises NameFault
    for names that are not known or lead outside, SettingError for a setting that cannot be honoured.
    """
    images = contained(places, id)
    folders = {name: contained(places, settings[name]) for name in _FOLDERS if settings.get(name)}
    if not any(room.pictures for room in rooms_of(places, id)):
        return _empty()
    read = {name: settings[name] for name in _READ if settings.get(name) is not None}
    spec = TrainSpec.from_mapping({"base": base or "tiny", "images": str(images), "out": "unused", **read})
    sizes = _sizes(spec, places.base(base)) if base else ()
    with _one_at_a_time:
        left: list[Path] = []
        found = scan(
            images,
            trigger=spec.trigger,
            masks=folders.get("masks"),
            alpha_masks=spec.alpha_masks,
            sizes=sizes,
            exclude=[path for name, path in folders.items() if name != "masks"],
            listen=listen,
            examine=_remembering(time.monotonic() + seconds, left),
        )
    return _result(found, sizes, len(left))


def _empty() -> dict[str, Any]:
    text = f"There is no picture in it yet. Add some: files ending in {', '.join(SUFFIXES)}."
    return {
        "usable": 0,
        "findings": [{"file": "", "kind": "unreadable", "text": text, "fatal": True}],
        "sizes": {},
        "trigger": "",
        "samples": 0,
        "left": 0,
    }


def _sizes(spec: TrainSpec, base: str) -> tuple[Size, ...]:
    """The sizes that a training would use, or none where the base's header does not say."""
    own = native(base, spec.prediction)
    if own is None:
        return ()
    side = spec.pixels(own.resolution, own.multiple)
    if side > MOST_PIXELS:
        raise SettingError(f"resolution={side}; expected at most {MOST_PIXELS}")
    return bucket_sizes(side, own.step, spec.buckets)


def _remembering(deadline: float, left: list[Path]) -> Examine:
    """Looks at files that were not seen before, until the deadline; those after it are added to `left`."""

    def examine(path: Path, alpha_masks: bool) -> Seen:
        try:
            stat = path.stat()
            key = (str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino, alpha_masks)
        except OSError:
            return examine_file(path, alpha_masks)  # says why it cannot be read
        with _writing:
            if key in _seen:
                _seen.move_to_end(key)
                return _seen[key]
        if time.monotonic() > deadline:
            left.append(path)
            return None, []
        seen = examine_file(path, alpha_masks)
        with _writing:
            _seen[key] = seen
            while len(_seen) > _REMEMBERED:
                _seen.popitem(last=False)
        return seen

    return examine


def _result(found: Folder, sizes: tuple[Size, ...], left: int) -> dict[str, Any]:
    findings = [
        {"file": shown(f.path, found.path), "kind": f.kind, "text": f.text, "fatal": f.fatal} for f in found.findings
    ]
    findings.sort(key=lambda finding: not finding["fatal"])
    if (more := len(findings) - _MOST_FINDINGS) > 0:
        text = f"{more} more remarks are not shown."
        findings[_MOST_FINDINGS:] = [{"file": "", "kind": "ignored", "text": text, "fatal": False}]
    if left:
        text = f"{left} more pictures were not looked at yet; check again to go on. A training looks at all of them."
        findings.insert(0, {"file": "", "kind": "ignored", "text": text, "fatal": False})
    counts = Counter(nearest(sizes, picture.size) for picture in found.pictures) if sizes else {}
    return {
        "usable": len(found.pictures),
        "findings": findings,
        "sizes": {f"{width}x{height}": count for (width, height), count in sorted(counts.items())},
        "trigger": found.trigger,
        "samples": sum(picture.repeats for picture in found.pictures),
        "left": left,
    }
