"""What a node tells the user about its last run."""

from __future__ import annotations

from comfy_execution.utils import get_executing_context
from server import PromptServer


def show(text: str) -> dict[str, list[str]]:
    """Writes the text onto the running node and returns it as the node's `ui`, where the history keeps it."""
    context = get_executing_context()
    if context is not None:
        PromptServer.instance.send_progress_text(text, context.node_id)
    return {"text": [text]}
