"""The prompt's tags: `<spectral:name:1>` means what `<lora:name:1>` means, and a refused file ends the generation.

A web UI shows what goes wrong while networks are activated on its console only and makes the picture without them.
"""

from __future__ import annotations

from collections.abc import Callable

from ..spectral.errors import Cancelled, SpectralError
from .host import Generation, Host, Undo

ALIAS = "spectral"
# Of a generation, called next after networks were activated: in the first pass, and in that of hires. fix.
_NEXT = ("setup_conds", "calculate_hr_conds")


def attach(host: Host) -> Undo:
    """Gives Lora's extra network the alias and lets `host` prepare what each generation chooses; how to undo it.

    For the time after the UI was built: Lora makes its extra network no earlier.
    """
    from modules import extra_networks

    network = extra_networks.extra_network_registry["lora"]
    network.__dict__.pop("activate", None)  # of an earlier start
    activate: Callable[[Generation, list], None] = network.activate

    def activate_and_prepare(generation: Generation, params: list) -> None:
        try:
            activate(generation, params)
            host.prepare(generation)
        except Cancelled:
            host.drop()  # the generation is ending already
        except SpectralError as error:
            host.drop()
            stop(generation, error)

    network.activate = activate_and_prepare
    extra_networks.register_extra_network_alias(network, ALIAS)

    def undo() -> None:
        network.__dict__.pop("activate", None)
        extra_networks.extra_network_aliases.pop(ALIAS, None)

    return undo


def stop(generation: Generation, error: SpectralError) -> None:
    """The generation raises the error at its next step, where the web UI hands it to the user."""

    def refuse(*_: object) -> None:
        for name in _NEXT:
            generation.__dict__.pop(name, None)
        raise error

    for name in _NEXT:
        setattr(generation, name, refuse)
