"""The start-up self-check: which host symbols each node file needs, and which of them this host lacks."""

from __future__ import annotations

import importlib

COMMON = (
    "comfy.model_patcher.ModelPatcher.clone",
    "comfy.model_management.load_models_gpu",
    "comfy.model_management.throw_exception_if_processing_interrupted",
)
DECODING = (
    "comfy.model_management.get_free_memory",
    "comfy.model_management.loaded_models",
    "comfy.sd.VAE",
    "comfy.utils.load_torch_file",
    "folder_paths.get_filename_list",
)
RESTARTING = (
    "comfy.model_patcher.ModelPatcher.add_wrapper_with_key",
    "comfy.model_patcher.ModelPatcher.get_model_object",
    "comfy.patcher_extension.WrapperExecutor.new_class_executor",
    "comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE",
    "comfy.patcher_extension.get_wrappers_with_key",
    "comfy.samplers.Sampler",
)
ATTENTION = (
    "comfy.ldm.modules.attention.SpatialTransformer",
    "comfy.ldm.modules.attention.optimized_attention",
    "comfy.ldm.modules.diffusionmodules.openaimodel.Downsample",
    "comfy.ldm.modules.diffusionmodules.openaimodel.Upsample",
    "comfy.model_patcher.ModelPatcher.add_wrapper_with_key",
    "comfy.model_patcher.ModelPatcher.clone",
    "comfy.patcher_extension.WrappersMP.CALC_COND_BATCH",
)
INVERTING = (
    *COMMON,
    "comfy.model_patcher.ModelPatcher.add_wrapper_with_key",
    "comfy.model_patcher.ModelPatcher.get_model_object",
    "comfy.model_patcher.ModelPatcher.set_model_sampler_post_cfg_function",
    "comfy.model_sampling.EPS",
    "comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE",
    "comfy.samplers.CFGGuider",
    "comfy.samplers.KSAMPLER",
    "comfy.samplers.sampler_object",
    "comfy.utils.PROGRESS_BAR_ENABLED",
    "latent_preview.prepare_callback",
)
FITTING = (  # null-texts
    *INVERTING,
    "comfy.conds.CONDCrossAttn",
    "comfy.samplers.Sampler",
    "comfy.samplers.calc_cond_batch",
    "comfy.samplers.cfg_function",
    "comfy.utils.repeat_to_batch_size",
)
LPIPS = (
    "comfy.utils.load_torch_file",
    "folder_paths.add_model_folder_path",
    "folder_paths.get_filename_list",
)
SAMPLING = (
    "comfy.sample.fix_empty_latent_channels",
    "comfy.sample.prepare_noise",
    "comfy.sample.sample",
    "comfy.sample.sample_custom",
    "comfy.samplers.KSampler",
    "comfy.samplers.sampler_object",
    "comfy.utils.PROGRESS_BAR_ENABLED",
    "latent_preview.prepare_callback",
)
CLASSIFYING = (
    *COMMON,
    "comfy.model_management.get_torch_device",
    "comfy.model_management.vae_offload_device",
    "comfy.utils.load_torch_file",
)
NEEDED = {
    "painting_guide": (*COMMON, *DECODING, *RESTARTING),
    "low_pass_guide": (*COMMON, *DECODING, *RESTARTING),
    "loopback": (*COMMON, *RESTARTING),
    "prompt": (
        "comfy.sd.CLIP.tokenize",
        "comfy.sd.CLIP.encode_from_tokens_scheduled",
        "comfy.sd1_clip.load_embed",
    ),
    "attention_regions": ATTENTION,
    "attention_maps": (
        *ATTENTION,
        *COMMON,
        *RESTARTING,
        "comfy.patcher_extension.WrappersMP.OUTER_SAMPLE",
        "comfy_api.latest.ui.ImageSaveHelper.save_animated_webp",
    ),
    "prompt_to_prompt": (*ATTENTION, *FITTING, "comfy_api.latest.ui.PreviewText"),
    "inversion": (*INVERTING, "comfy_api.latest.ui.PreviewImage", "comfy_api.latest.ui.PreviewText"),
    "null_text": (
        *FITTING,
        "comfy.ldm.modules.attention.attention_pytorch",
        "comfy_api.latest.ui.PreviewImage",
    ),
    "trajectory": (
        *COMMON,
        *DECODING,
        "comfy.cli_args.args",
        "comfy.utils.ProgressBar",
        "comfy_api.latest.ui.PreviewText",
        "folder_paths.annotated_filepath",
        "folder_paths.get_input_directory",
        "folder_paths.get_output_directory",
        "folder_paths.get_save_image_path",
    ),
    "edit_direction": (
        "comfy.sd.CLIP.tokenize",
        "comfy.sd.CLIP.encode_from_tokens_scheduled",
        *COMMON,
        *RESTARTING,
    ),
    "cross_attention_guidance": (
        *COMMON,
        *ATTENTION,
        "comfy.ldm.modules.attention.attention_pytorch",
        "comfy.model_patcher.ModelPatcher.get_model_object",
        "comfy.patcher_extension.WrappersMP.OUTER_SAMPLE",
        "comfy.patcher_extension.WrappersMP.PREDICT_NOISE",
        "comfy.sampler_helpers.convert_cond",
        "comfy.samplers.calc_cond_batch",
    ),
    "painting_function": COMMON,
    "painting_distance": COMMON,
    "gradop": (
        *COMMON,
        *DECODING,
        *RESTARTING,
        *SAMPLING,
        "comfy_api.latest.ui.PreviewImage",
        "folder_paths.add_model_folder_path",
    ),
    "perceptual_guidance": (
        *COMMON,
        *DECODING,
        *LPIPS,
        "comfy.ldm.modules.attention.attention_pytorch",
        "comfy.model_patcher.ModelPatcher.add_wrapper_with_key",
        "comfy.model_patcher.ModelPatcher.get_model_object",
        "comfy.model_patcher.ModelPatcher.set_model_sampler_post_cfg_function",
        "comfy.patcher_extension.WrappersMP.OUTER_SAMPLE",
        "comfy.patcher_extension.WrappersMP.PREDICT_NOISE",
        "comfy.sampler_helpers.convert_cond",
        "comfy.samplers.calc_cond_batch",
        "comfy_api.latest.ui.PreviewImage",
        "comfy_api.latest.ui.PreviewText",
    ),
    "text_guidance": (
        "comfy.model_patcher.ModelPatcher.get_model_object",
        "comfy.samplers.CFGGuider",
        "comfy.samplers.calc_cond_batch",
        "comfy.samplers.cfg_function",
        "comfy.samplers.process_conds",
        "comfy.samplers.sampling_function",
    ),
    "composition": (
        "comfy.samplers.CFGGuider",
        "comfy.samplers.calc_cond_batch",
        "comfy.samplers.get_area_and_mult",
        "comfy.samplers.sampling_function",
    ),
    "repaint": (*COMMON, *RESTARTING),
    "image_metrics": (
        *COMMON,
        *LPIPS,
        "comfy.clip_model.CLIPTextModel",
        "comfy.model_management.load_model_gpu",
        "comfy.utils.ProgressBar",
        "comfy_api.latest.ui.PreviewText",
    ),
    "sweep": (
        *COMMON,
        *LPIPS,
        "comfy.utils.ProgressBar",
        "comfy_api.latest.ui.PreviewImage",
        "comfy_api.latest.ui.PreviewText",
    ),
    "anagram": (
        *COMMON,
        *DECODING,
        "comfy.conds.CONDNoiseShape",
        "comfy.model_patcher.ModelPatcher.get_model_object",
        "comfy.patcher_extension.WrappersMP.CALC_COND_BATCH",
        "comfy.patcher_extension.get_all_wrappers",
        "comfy.sampler_helpers.prepare_mask",
        "comfy.samplers.CFGGuider",
        "comfy.samplers.calc_cond_batch",
        "comfy.samplers.cfg_function",
        "comfy.samplers.get_area_and_mult",
        "comfy.samplers.process_conds",
        "comfy.utils.common_upscale",
    ),
    "view_pictures": (
        *COMMON,
        *RESTARTING,
        "comfy.utils.ProgressBar",
        "comfy_api.latest.ui.ImageSaveHelper.save_animated_webp",
        "comfy_api.latest.ui.PreviewImage",
    ),
    "illusion_score": (
        *CLASSIFYING,
        "comfy.clip_model.CLIPTextModel",
        "comfy.model_management.load_model_gpu",
        "comfy.utils.ProgressBar",
        "comfy_api.latest.ui.PreviewText",
    ),
    "classifier": (
        *CLASSIFYING,
        "comfy_api.latest.ui.PreviewText",
        "folder_paths.add_model_folder_path",
        "folder_paths.get_folder_paths",
        "folder_paths.recursive_search",
    ),
    "saliency_noise": (
        *CLASSIFYING,
        *DECODING,
        *RESTARTING,
        *SAMPLING,
        "comfy.model_management.InterruptProcessingException",
        "comfy_api.latest.ui.PreviewImage",
        "comfy_api.latest.ui.PreviewText",
        "comfy_execution.graph_utils.ExecutionBlocker",
    ),
    "transform_noise": ("comfy.sample.prepare_noise",),
}


def resolves(symbol: str) -> bool:
    """Tell whether the dotted name `symbol` (module, then attributes) exists in this host."""
    parts = symbol.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for attribute in parts[cut:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def missing_symbols(module: str) -> list[str]:
    """Return the symbols that `nodes/<module>.py` needs and this host lacks."""
    return [symbol for symbol in NEEDED[module] if not resolves(symbol)]
