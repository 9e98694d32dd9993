"""Any number of adapters as the growing inputs of one node."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io

from .adapters import ADAPTERS, Use

MOST = 20  # sockets; one socket may bring several adapters
_NAME = "adapter_"


def adapters_input(tooltip: str) -> io.Autogrow.Input:
    """A socket for adapters, and another one as soon as it is taken."""
    # Neither optional nor with fewer than one: older ComfyUI fails on the first and draws no socket for the second.
    template = io.Autogrow.TemplatePrefix(ADAPTERS.Input("adapter", tooltip=tooltip), prefix=_NAME, min=1, max=MOST)
    return io.Autogrow.Input("adapters", template=template, tooltip=tooltip)


def gathered(adapters: Mapping[str, tuple[Use, ...] | None] | None) -> tuple[Use, ...]:
    """All that came through the sockets, in their order. Raises SettingError where none is connected."""
    sockets = sorted(adapters or {}, key=lambda name: int(name.removeprefix(_NAME)))
    uses = tuple(use for socket in sockets for use in adapters[socket] or ())
    if not uses:
        from ..spectral.errors import SettingError

        raise SettingError(
            "found no adapter at the inputs; expected at least one. Connect the adapter output of a Spectral Adapter "
            "Loader or of a Spectral Adapter Stack, and switch at least one of its rows on."
        )
    return uses


def named(uses: tuple[Use, ...]) -> tuple[str, ...]:
    """Their names, each once: the second `cat` is `cat (2)`."""
    seen: dict[str, int] = {}
    found = []
    for use in uses:
        seen[use.name] = seen.get(use.name, 0) + 1
        found.append(use.name if seen[use.name] == 1 else f"{use.name} ({seen[use.name]})")
    return tuple(found)
