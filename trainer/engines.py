"""What can train: this package's own loop, and kohya's sd-scripts where the user has set it up.

Which program sd-scripts is, is never in a request: it is the user's command line, environment or file that says so.
Needs no torch, and reads nothing of sd-scripts before it is asked for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from .spec import TrainSpec

Engine = Literal["built-in", "sd-scripts"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
BUILT_IN, SD_SCRIPTS = ENGINES

TITLES: dict[Engine, tuple[str, str]] = {
    "built-in": ("Built-in", "The trainer of this package. It has every setting, and trains all methods."),
    "sd-scripts": (
        "sd-scripts",
        "kohya's trainer, with its own Python, as it is set up on this machine. The adapter file is of the same kind.",
    ),
}


def describe() -> list[dict[str, Any]]:
    """What there is to choose from: [{name, title, help, available, text}]; text: why it cannot be used here, or ""."""
    found = []
    for name in ENGINES:
        text = why_not(name)
        title, help = TITLES[name]
        found.append({"name": name, "title": title, "help": help, "available": not text, "text": text})
    return found


def why_not(engine: Engine) -> str:
    """A sentence saying why an engine cannot be used here, "" where it can. Nothing of it is run."""
    if engine == BUILT_IN:
        return ""
    from .sd_scripts.place import why_not

    return why_not()


def check(engine: Engine, spec: TrainSpec) -> None:
    """Raise SettingError unless the engine is there and has all that this training asks for."""
    if engine == BUILT_IN:
        return
    from .sd_scripts import place, translate

    place.find()
    translate.check(spec)


def said(engine: Engine, spec: TrainSpec) -> dict[str, list[dict[str, str]]]:
    """What an engine says of a training before it starts, each {setting, text}.

    refusals: what it cannot honour, so that it would not start. remarks: what it honours in its own way, or not at all.
    """
    if engine == BUILT_IN:
        return {"refusals": [], "remarks": []}
    from .sd_scripts import translate

    return {
        "refusals": list(map(_by_setting, translate.refusals(spec))),
        "remarks": list(map(_by_setting, translate.remarks(spec))),
    }


def _by_setting(sentence: str) -> dict[str, str]:
    setting, _, text = sentence.partition(": ")
    return {"setting": setting, "text": text}
