"""The pack's own sockets."""

from __future__ import annotations

from comfy_api.latest import io

PromptSocket = io.Custom("GUIDED_SYNTHESIS_PROMPT")
RegionsSocket = io.Custom("GUIDED_SYNTHESIS_REGIONS")
EditsSocket = io.Custom("GUIDED_SYNTHESIS_EDITS")
AttentionMapsSocket = io.Custom("GUIDED_SYNTHESIS_ATTENTION_MAPS")
TrajectorySocket = io.Custom("GUIDED_SYNTHESIS_TRAJECTORY")
CompositionSocket = io.Custom("GUIDED_SYNTHESIS_COMPOSITION")
ViewsSocket = io.Custom("GUIDED_SYNTHESIS_VIEWS")
ClassifierSocket = io.Custom("GUIDED_SYNTHESIS_CLASSIFIER")
