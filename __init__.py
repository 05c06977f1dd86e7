"""Guided Synthesis: published techniques for controlling diffusion models, as ComfyUI nodes."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    """Return the pack's extension; the host calls this once at its start."""
    from .nodes import GuidedSynthesis

    return GuidedSynthesis()
