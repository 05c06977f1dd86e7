"""Illusion Score on the real host: the paper's numbers with CLIP of transformers, a classifier, the picker, errors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imagenet.photos import chelsea
from real_host.clip_models import SIDE, clip_of, small_clip, vision_of
from tiny_sd import data, resnet
from tiny_sd.world import draw, make_spec

PROMPTS = ("a photo of a fox", "an apple in the snow", "a red balloon")


@pytest.fixture(scope="module")
def pack(host):
    from guided_synthesis.guidance.views.protocol import Reading
    from guided_synthesis.guidance.views.registry import Parameters, make
    from guided_synthesis.nodes import illusion_score

    def chain(*names):
        return tuple(Reading(make(name, Parameters()), title=name) for name in names)

    return SimpleNamespace(node=illusion_score.IllusionScore, chain=chain)


@pytest.fixture(scope="module")
def views(pack):
    """Three links: as it is, upside down, a quarter turn."""
    return pack.chain("identity", "flip vertical", "rotate 90 clockwise")


@pytest.fixture(scope="module")
def photos():
    """IMAGE (4, 32, 32, 3): pieces of a photograph, of the size that the small CLIP sees."""
    pieces = [
        chelsea()[y : y + SIDE, x : x + SIDE] for y, x in ((100, 150), (140, 180), (60, 200), (180, 90))
    ]
    return torch.from_numpy(np.stack(pieces)).float() / 255


@pytest.fixture(scope="module")
def clip_model():
    """A CLIP of transformers with random weights."""
    return small_clip()


@pytest.fixture(scope="module")
def halves(host, clip_model, tmp_path_factory):
    """Its halves as the host's CLIP and CLIP_VISION."""
    return {
        "clip": clip_of(clip_model),
        "clip_vision": vision_of(clip_model, tmp_path_factory.mktemp("vision")),
    }


@pytest.fixture(scope="module")
def cosines(clip_model, halves, photos):
    """S (4, 3, 3) of `photos` in `views` with PROMPTS, from transformers alone."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    seen = torch.stack([torch.stack([one, one.flip(0), one.rot90(-1)]) for one in photos]).flatten(0, 1)
    words = halves["clip"].tokenizer.clip_l.tokenizer(list(PROMPTS), padding=True, return_tensors="pt")

    def features(found):
        found = getattr(found, "pooler_output", found)
        return (found / found.norm(dim=-1, keepdim=True)).double()

    with torch.no_grad():
        pictures = features(clip_model.get_image_features((seen.movedim(-1, 1) - mean) / std))
        texts = features(clip_model.get_text_features(words.input_ids, words.attention_mask))
    return (pictures @ texts.T).reshape(len(photos), 3, 3).numpy()


def scored(pack, image, views, prompts=PROMPTS, **halves):
    """The node as a graph calls it: its numbers, the picture and the shown text."""
    with torch.inference_mode():
        out = pack.node.execute(image, views, "\n".join(prompts), **halves)
    alignment, concealment, best = out.args
    return SimpleNamespace(
        alignment=alignment, concealment=concealment, best=best, text=out.ui.as_dict()["text"][0]
    )


def by_hand(s):
    """A and C of the paper of S (3, 3), in numpy."""
    e = np.exp(s / 0.07)
    rows, columns = e / e.sum(1, keepdims=True), e / e.sum(0, keepdims=True)
    return np.diag(s).min(), (np.trace(rows) + np.trace(columns)) / (2 * len(s))


@pytest.mark.parametrize("picture", range(4))
def test_alignment_and_concealment_are_those_of_the_paper(pack, photos, views, halves, cosines, picture):
    found = scored(pack, photos[picture : picture + 1], views, **halves)
    a, c = by_hand(cosines[picture])
    assert found.alignment == pytest.approx(a, abs=1e-4) and found.concealment == pytest.approx(c, abs=1e-3)
    assert torch.equal(found.best, photos[picture : picture + 1])


def test_the_picture_with_the_highest_alignment_of_a_batch_is_picked(pack, photos, views, halves, cosines):
    found = scored(pack, photos, views, **halves)
    alignments = [by_hand(s)[0] for s in cosines]
    winner = int(np.argmax(alignments))
    assert found.alignment == pytest.approx(alignments[winner], abs=1e-4)
    assert found.concealment == pytest.approx(by_hand(cosines[winner])[1], abs=1e-3)
    assert torch.equal(found.best, photos[winner : winner + 1])


def test_the_order_of_a_batch_does_not_change_what_is_picked(pack, photos, views, halves):
    one, other = scored(pack, photos, views, **halves), scored(pack, photos.flip(0), views, **halves)
    assert torch.equal(one.best, other.best) and one.alignment == other.alignment


def test_the_table_has_each_picture_and_how_each_reading_fits(pack, photos, views, halves, cosines):
    lines = scored(pack, photos, views, **halves).text.splitlines()
    assert len(lines) == 4 * 4
    winner = int(np.argmax([by_hand(s)[0] for s in cosines]))
    assert [line.split(":")[0] for line in lines[::4]] == [
        f"picture {i + 1}" + (" (best)" if i == winner else "") for i in range(4)
    ]
    assert lines[5].startswith("    a photo of a fox: fits ")
    shown = [float(line.split("fits ")[1].split(",")[0]) for line in lines[5:8]]
    assert shown == pytest.approx(np.diag(cosines[1]), abs=2e-4)
    assert "(best)" not in scored(pack, photos[:1], views, **halves).text


def test_prompts_belong_to_views_in_the_order_of_the_chain(pack, photos, views, halves):
    one = scored(pack, photos, views, **halves)
    other = scored(pack, photos, views[::-1], PROMPTS[::-1], **halves)
    swapped = scored(pack, photos, views, PROMPTS[::-1], **halves)
    assert (other.alignment, other.concealment) == pytest.approx((one.alignment, one.concealment), abs=1e-6)
    assert abs(swapped.alignment - one.alignment) > 1e-3


def test_empty_lines_between_prompts_do_not_count(pack, photos, views, halves):
    spaced = scored(pack, photos, views, ("", *PROMPTS[:2], "  ", PROMPTS[2], ""), **halves)
    assert spaced.text == scored(pack, photos, views, **halves).text


def test_one_view_is_its_cosine_and_cannot_be_mistaken(pack, photos, halves, cosines):
    found = scored(pack, photos[:1], pack.chain("identity"), PROMPTS[:1], **halves)
    assert found.alignment == pytest.approx(cosines[0, 0, 0], abs=1e-4) and found.concealment == 1


def test_a_picture_that_is_not_a_number_is_not_picked(pack, photos, views, halves):
    broken = photos[:2].clone()
    broken[0] = torch.nan
    found = scored(pack, broken, views, **halves)
    assert torch.equal(found.best, photos[1:2]) and np.isfinite(found.alignment)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"views": ()}, "views is empty.*Connect a View"),
        ({"views": None}, "views is empty.*Connect a View"),
        ({"prompts": ("a fox",)}, "prompts has 1 line for 3 views.*in the order of the chain"),
        ({"prompts": (*PROMPTS, "a fox")}, "prompts has 4 lines for 3 views"),
        ({"image": torch.zeros(1, 32, 48, 3)}, "quarter turn.*48 wide and 32 high"),
        ({"image": torch.zeros(1, 32, 32, 1)}, "image has a single grey channel"),
    ],
)
def test_bad_input_is_a_sentence(pack, photos, views, halves, change, sentence):
    given = {"image": photos, "views": views} | change
    with pytest.raises(ValueError, match=sentence):
        scored(pack, **given, **halves)


def test_halves_of_two_models_are_refused(pack, tiny, photos, views, halves):
    with pytest.raises(
        ValueError, match="image features of 24 numbers and clip has text features of 64 numbers"
    ):
        scored(pack, photos, views, clip=tiny[1], clip_vision=halves["clip_vision"])


def test_an_interrupt_stops_between_readings(host, pack, photos, views, halves, monkeypatch):
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 5:
            raise InterruptedError

    monkeypatch.setattr(host.comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(InterruptedError):
        scored(pack, photos, views, **halves)
    assert len(calls) == 5


@pytest.fixture(scope="module")
def classifier(host):
    """The demo's ResNet18 as Load Classifier gives it."""
    from guided_synthesis.nodes.host.classifiers import load_classifier

    with torch.inference_mode():
        return load_classifier(resnet.WEIGHTS, None)


@pytest.fixture(scope="module")
def scenes():
    """IMAGE (3, 128, 128, 3): three drawn scenes, and the names of what they show."""
    specs = [make_spec(data.HELD_OUT + index, things=1) for index in range(3)]
    drawn = torch.from_numpy(np.stack([draw(spec).image for spec in specs])).float() / 255
    return drawn, [spec.things[0].noun for spec in specs]


def test_a_classifier_judges_by_the_probabilities_of_its_labels(pack, scenes, classifier):
    images, nouns = scenes
    chain, labels = pack.chain("identity", "flip vertical"), (nouns[0], nouns[1])
    found = scored(pack, images, chain, labels, classifier=classifier)
    seen = torch.stack([torch.stack([one, one.flip(0)]) for one in images]).flatten(0, 1).movedim(-1, 1)
    columns = [resnet.NAMES.index(label) for label in labels]
    with torch.inference_mode():
        logits = classifier.patcher.model((seen - 0.5) / 0.5)
    logs = logits.log_softmax(1)[:, columns].reshape(3, 2, 2).double()
    worst = logs.exp().diagonal(dim1=1, dim2=2).amin(1)
    winner = int(worst.argmax())
    told = logs[winner].softmax(1).trace() + logs[winner].softmax(0).trace()
    assert found.alignment == pytest.approx(worst[winner].item(), abs=1e-5)
    assert found.concealment == pytest.approx(told.item() / 4, abs=1e-4)
    assert torch.equal(found.best, images[winner : winner + 1])


def test_a_classifier_picks_the_picture_that_shows_the_label(pack, scenes, classifier):
    images, nouns = scenes
    found = scored(pack, images, pack.chain("identity"), nouns[2:], classifier=classifier)
    assert torch.equal(found.best, images[2:]) and found.alignment > 0.5


def test_a_label_that_the_classifier_does_not_know_is_refused(pack, photos, views, classifier):
    with pytest.raises(ValueError, match="no label 'a photo of a fox'.*'fox'"):
        scored(pack, photos, views, classifier=classifier)


@pytest.mark.parametrize(
    "given, sentence",
    [
        ((), "Nothing is connected that could look"),
        (("clip",), "both halves of one CLIP"),
        (("clip", "clip_vision", "classifier"), "only one can judge"),
    ],
)
def test_there_is_one_judge(pack, photos, views, halves, classifier, given, sentence):
    judges = {name: value for name, value in {**halves, "classifier": classifier}.items() if name in given}
    with pytest.raises(ValueError, match=sentence):
        scored(pack, photos, views, **judges)


def test_the_host_runs_it_without_a_connected_output(pack):
    schema = pack.node.GET_SCHEMA()
    assert schema.is_output_node
    assert [entry.id for entry in schema.inputs if entry.optional] == ["clip", "clip_vision", "classifier"]
    assert [out.display_name for out in schema.outputs] == ["alignment", "concealment", "best"]
