"""Image Metrics on the real host: golden values, masks, CLIPScore against torchmetrics, what is refused."""

from __future__ import annotations

import gc
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imagenet.photos import chelsea
from imagenet.weights import install
from real_host.clip_models import SIDE, clip_of, small_clip, vision_of

TEXT = "a photo of a fox and an apple in the snow"


@pytest.fixture(scope="module")
def node(host, tmp_path_factory):
    """The module; the folder `models/lpips` holds real AlexNet and VGG16."""
    from guided_synthesis.nodes import image_metrics

    folder = tmp_path_factory.mktemp("models") / "lpips"
    install(folder)
    patch = pytest.MonkeyPatch()
    patch.setitem(host.folder_paths.folder_names_and_paths, "lpips", ([str(folder)], set()))
    patch.setattr(host.folder_paths, "models_dir", str(folder.parent))
    host.folder_paths.filename_list_cache.pop("lpips", None)
    yield image_metrics
    patch.undo()
    host.folder_paths.filename_list_cache.pop("lpips", None)


@pytest.fixture(scope="module")
def photo():
    """IMAGE (3, 64, 64, 3): a piece of a photograph, shifted by 4 px, and with a checkerboard on it."""
    piece = chelsea()[100:164, 150:214]
    board = np.where(np.indices((64, 64)).sum(0) % 2, 20, -20)[..., None]
    pictures = np.stack([piece, np.roll(piece, 4, 1), (piece + board).clip(0, 255)])
    return torch.from_numpy(pictures).float() / 255


def measure(node, images, reference, net="alex", **more):
    """The node as a graph calls it: its four numbers and the shown text."""
    with torch.inference_mode():
        out = node.ImageMetrics.execute(images, reference, net, **more)
    return SimpleNamespace(
        **dict(zip(("psnr", "ssim", "lpips", "clip"), out.args, strict=True)),
        text=out.ui.as_dict()["text"][0],
    )


@pytest.fixture(scope="module")
def clip_model():
    """A CLIP of transformers with random weights."""
    return small_clip()


class FeaturesOnly:
    """A CLIP of transformers whose features come as tensors, as torchmetrics expects; newer ones come in a record."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def to(self, device):
        """Stay on the CPU."""
        return self

    def get_image_features(self, pixels):
        """Return (B, WIDTH)."""
        found = self.model.get_image_features(pixels)
        return getattr(found, "pooler_output", found)

    def get_text_features(self, tokens, mask):
        """Return (B, WIDTH)."""
        found = self.model.get_text_features(tokens, mask)
        return getattr(found, "pooler_output", found)


@pytest.fixture(scope="module")
def vision(host, clip_model, tmp_path_factory):
    """CLIP_VISION of the host with the weights of `clip_model`."""
    return vision_of(clip_model, tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def clip(host, clip_model):
    """CLIP of the host with the weights of `clip_model`, made as an SD 1.x text encoder (unprojected by default)."""
    return clip_of(clip_model)


@pytest.fixture(scope="module")
def processor(clip):
    """What turns pictures and texts into the inputs of transformers' CLIP."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return CLIPProcessor(CLIPImageProcessor(**sizes), clip.tokenizer.clip_l.tokenizer)


@pytest.mark.parametrize("net, golden", [("alex", (0.0456, 0.0026)), ("vgg", (0.2363, 0.1014))])
def test_lpips_has_its_known_values_and_the_float_is_the_mean(node, photo, net, golden):
    found = measure(node, photo[1:], photo[:1], net)
    assert found.lpips == pytest.approx(sum(golden) / 2, abs=1e-3)
    lines = found.text.splitlines()
    assert lines[0] == f"LPIPS by {net}" and lines[-1].startswith("mean of 2: PSNR ")
    shown = [float(re.findall(r"LPIPS ([\d.]+)", line)[0]) for line in lines[1:3]]
    assert shown == pytest.approx(golden, abs=1e-3)


def test_psnr_and_ssim_are_those_of_torchmetrics(node, photo):
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    pair = photo[1:].movedim(-1, 1), photo[:1].movedim(-1, 1).repeat(2, 1, 1, 1)
    found = measure(node, photo[1:], photo[:1])
    each = peak_signal_noise_ratio(*pair, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert found.psnr == pytest.approx(each.mean().item(), rel=1e-6)
    exact = structural_similarity_index_measure(*(picture.double() for picture in pair), data_range=1.0)
    assert found.ssim == pytest.approx(exact.item(), abs=3e-6)


def test_equal_pictures_are_infinitely_close_and_it_says_so(node, photo):
    found = measure(node, photo, photo)
    assert (found.psnr, found.ssim, found.lpips) == (math.inf, 1.0, 0.0)
    assert "picture 3: PSNR inf dB (equal), SSIM 1.0000, LPIPS 0.0000" in found.text


def test_half_precision_and_an_alpha_channel_are_measured_too(node, photo):
    plain, half = measure(node, photo[1:], photo[:1]), measure(node, photo[1:].half(), photo[:1].half())
    assert half.psnr == pytest.approx(plain.psnr, abs=0.01) and half.lpips == pytest.approx(
        plain.lpips, abs=1e-3
    )
    alpha = torch.cat([photo[1:], torch.ones_like(photo[1:, ..., :1])], -1)
    assert measure(node, alpha, photo[:1]).psnr == plain.psnr


def test_only_what_is_inside_of_the_mask_counts(node, photo):
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :40] = 1
    broken = photo[1:].clone()
    broken[:, :, 56:] = 0.3  # farther away than SSIM's window
    inside, changed = (measure(node, images, photo[:1], mask=mask) for images in (photo[1:], broken))
    assert (inside.psnr, inside.ssim, inside.lpips) == (changed.psnr, changed.ssim, changed.lpips)
    assert measure(node, broken, photo[:1]).psnr < inside.psnr
    assert "inside the mask: 62.5% of the picture" in inside.text


def test_lpips_inside_a_mask_is_that_of_the_picture_with_the_reference_around_it(node, photo):
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :40] = 1
    pasted = photo[:1].clone()
    pasted[:, :, :40] = photo[1:2, :, :40]
    found = measure(node, photo[1:2], photo[:1], mask=mask)
    assert found.lpips == pytest.approx(measure(node, pasted, photo[:1]).lpips, abs=1e-6)


def test_a_white_mask_changes_nothing_and_a_grey_one_is_no_smaller_error(node, photo):
    plain = measure(node, photo[1:], photo[:1])
    white = measure(node, photo[1:], photo[:1], mask=torch.ones(64, 64))
    grey = measure(node, photo[1:], photo[:1], mask=torch.full((2, 64, 64), 0.5))
    assert (white.psnr, white.ssim) == pytest.approx((plain.psnr, plain.ssim), rel=1e-5)
    assert (grey.psnr, grey.ssim) == pytest.approx((plain.psnr, plain.ssim), rel=1e-5)
    assert white.lpips == pytest.approx(plain.lpips, abs=1e-5)


def test_a_picture_that_is_not_a_number_spoils_only_its_own_line(node, photo):
    images = photo.clone()
    images[1] = torch.nan
    found = measure(node, images, photo[:1])
    lines = found.text.splitlines()
    assert math.isnan(found.psnr) and "PSNR nan dB, SSIM nan, LPIPS nan" in lines[2]
    assert "nan" not in lines[1] + lines[3]


def test_without_a_clip_there_is_no_clip_score(node, photo):
    found = measure(node, photo, photo[:1], text=TEXT)
    assert math.isnan(found.clip) and "CLIPScore" not in found.text


def test_clip_score_is_that_of_torchmetrics_with_the_same_weights(
    node, photo, clip_model, clip, vision, processor
):
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    images = (photo[:, :SIDE, :SIDE] * 255).round() / 255
    found = measure(node, images, images, clip=clip, clip_vision=vision, text=TEXT)
    bytes_ = list((images * 255).round().byte().movedim(-1, 1))
    with torch.no_grad():
        expected, _ = _clip_score_update(bytes_, [TEXT] * 3, FeaturesOnly(clip_model), processor)
    assert found.clip == pytest.approx(max(expected.mean().item(), 0), abs=1e-3)
    shown = [float(score) for score in re.findall(r"picture.*CLIPScore ([\d.]+)", found.text)]
    assert shown == pytest.approx(expected.clamp(min=0).tolist(), abs=6e-3)
    assert expected.min() > 1 and expected.max() - expected.min() > 1  # there is something to see


def test_a_text_that_does_not_fit_at_all_scores_nothing(node, photo, clip_model, clip, tmp_path):
    """Torchmetrics' CLIPScore is never negative."""
    opposite = vision_of(clip_model, tmp_path)
    weight = opposite.model.visual_projection.weight
    with torch.inference_mode():
        weight.copy_(-weight)
    found = measure(node, photo, photo, clip=clip, clip_vision=opposite, text=TEXT)
    assert found.clip == 0 and found.text.count("CLIPScore 0.00") == 4


def test_clip_score_sees_pictures_of_any_size_and_the_first_words_of_a_long_text(
    node, photo, clip_model, clip, vision, processor
):
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    wide, words = photo[:1, :50], f"{TEXT} " * 20
    found = measure(node, wide, wide, clip=clip, clip_vision=vision, text=words)
    short = " ".join(words.split()[:75])  # each word is one token
    with torch.no_grad():
        bytes_ = [(wide[0] * 255).round().byte().movedim(-1, 0)]
        expected, _ = _clip_score_update(bytes_, [short], FeaturesOnly(clip_model), processor)
    assert expected.item() > 1
    assert found.clip == pytest.approx(expected.item(), abs=0.3)  # they scale pictures a little differently


def test_brackets_are_characters_of_the_text_and_no_weights(node, photo, clip_model, clip, vision, processor):
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    images, words = (photo[:1, :SIDE, :SIDE] * 255).round() / 255, f"({TEXT}:1.4)"
    found = measure(node, images, images, clip=clip, clip_vision=vision, text=words)
    with torch.no_grad():
        bytes_ = [(images[0] * 255).round().byte().movedim(-1, 0)]
        expected, _ = _clip_score_update(bytes_, [words], FeaturesOnly(clip_model), processor)
    assert expected.item() > 1 and found.clip == pytest.approx(expected.item(), abs=1e-3)


def test_the_clip_goes_on_encoding_as_before(host, node, photo, clip, vision):
    with torch.inference_mode():
        before = clip.encode_from_tokens(clip.tokenize("a fox"), return_pooled=True)
        measure(node, photo, photo, clip=clip, clip_vision=vision, text="a fox")
        after = clip.encode_from_tokens(clip.tokenize("a fox"), return_pooled=True)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_clip_with_more_encoders_answers_with_the_one_that_fits(node, photo, clip, clip_model, vision):
    """As SDXL and Flux: CLIP encoders beside another text model."""
    encoder = clip.cond_stage_model.clip_l

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.t5xxl, self.clip_l = torch.nn.Module(), encoder

    both = SimpleNamespace(cond_stage_model=Both(), patcher=clip.patcher, tokenize=clip.tokenize)
    given = {"clip_vision": vision, "text": TEXT}
    assert (
        measure(node, photo, photo, clip=both, **given).clip
        == measure(node, photo, photo, clip=clip, **given).clip
    )


@pytest.mark.parametrize("memory", [0.0, 1e-30, 1e30, math.nan])
def test_a_text_side_without_its_projection_is_refused(node, photo, clip_model, vision, memory):
    bare = clip_of(clip_model, keep=lambda key: "text_projection" not in key)
    with torch.inference_mode():
        bare.cond_stage_model.clip_l.transformer.text_projection.weight.fill_(memory)
    with pytest.raises(ValueError, match="clip has no text projection: .*checkpoints of SD 1.x.*Load CLIP"):
        measure(node, photo, photo, clip=bare, clip_vision=vision, text=TEXT)


def test_an_image_side_without_its_projection_is_refused(host, node, photo, clip_model, clip, tmp_path):
    siglip = vision_of(clip_model, tmp_path, projection_dim=None)
    with pytest.raises(ValueError, match="clip_vision does not end in CLIP's image projection"):
        measure(node, photo, photo, clip=clip, clip_vision=siglip, text=TEXT)


def test_halves_of_two_models_are_refused_with_both_sizes(host, tiny, node, photo, clip, vision):
    sentence = "image features of 24 numbers and clip has text features of 64 numbers.*of the same"
    with pytest.raises(ValueError, match=sentence):
        measure(node, photo, photo, clip=tiny[1], clip_vision=vision, text=TEXT)
    other = SimpleNamespace(cond_stage_model=torch.nn.Module(), patcher=clip.patcher, tokenize=clip.tokenize)
    with pytest.raises(ValueError, match="clip has no CLIP text encoder"):
        measure(node, photo, photo, clip=other, clip_vision=vision, text=TEXT)


@pytest.mark.parametrize(
    "given, missing",
    [
        (("clip",), "clip_vision and text are"),
        (("clip_vision", "text"), "clip is"),
        (("clip", "clip_vision"), "text is"),
    ],
)
def test_half_of_what_clip_score_needs_is_refused(node, photo, clip, vision, given, missing):
    parts = {"clip": clip, "clip_vision": vision, "text": "a fox"}
    with pytest.raises(ValueError, match=f"needs clip_vision, clip and text, but {missing} missing"):
        measure(node, photo, photo, **{name: parts[name] for name in given})


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"reference": torch.zeros(1, 32, 64, 3)}, "reference is 64x32 px but images is 64x64 px"),
        ({"reference": torch.zeros(2, 64, 64, 3)}, "reference has 2 pictures but images has 3"),
        ({"reference": torch.zeros(1, 64, 64, 1)}, "reference has a single grey channel"),
        ({"mask": torch.zeros(1, 64, 64)}, "mask 1 of 1 is empty"),
        ({"mask": torch.ones(1, 8, 8)}, "mask is 8x8 px but images is 64x64 px"),
        ({"net": "resnet"}, "no LPIPS network 'resnet'"),
        (
            {"images": torch.zeros(1, 16, 16, 3), "reference": torch.zeros(1, 16, 16, 3)},
            "cannot see pictures of 16x16",
        ),
    ],
)
def test_bad_input_is_a_sentence(node, photo, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        measure(node, **({"images": photo, "reference": photo[:1]} | change))


def test_an_interrupt_stops_between_pictures_and_nothing_stays_loaded(host, node, photo, monkeypatch):
    management, checks = host.comfy.model_management, []

    def interrupt():
        checks.append(1)
        if len(checks) == 2:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(management, "throw_exception_if_processing_interrupted", interrupt)
        with pytest.raises(InterruptedError):
            measure(node, photo, photo)
    assert len(checks) == 2
    measure(node, photo, photo)
    gc.collect()
    loaded = [type(patcher.model).__name__ for patcher in management.loaded_models() if patcher is not None]
    assert "LPIPS" not in loaded


def test_the_host_runs_it_without_a_connected_output(node):
    schema = node.ImageMetrics.define_schema()
    assert schema.is_output_node and [out.display_name for out in schema.outputs] == [
        "PSNR", "SSIM", "LPIPS", "CLIPScore",
    ]  # fmt: skip
