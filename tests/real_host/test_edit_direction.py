"""The edit direction on the real host: the formula, other settings, lengths, effect, failures."""

import re

import pytest
import torch

from real_host.sampling import conditioning, sample
from tiny_sd import classifier

TEMPLATE = "a photo of {}\na drawing of {}\na photo of {} in the snow"


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import edit_direction

    return edit_direction


def edit(node, clip, given, source="a fox", target="a panda", template=TEMPLATE, strength=1.0):
    """The node as a graph calls it: (edited, direction)."""
    with torch.inference_mode():
        return node.EditDirection.execute(clip, given, source, target, template, strength).args


def encoded(clip, *texts):
    with torch.inference_mode():
        return torch.cat([clip.encode_from_tokens(clip.tokenize(text)) for text in texts])


class Pooling:
    """The demo model's encoder with a pooled output, as SDXL's has one: the sum of the tokens."""

    def __init__(self, clip):
        self.clip = clip

    def tokenize(self, text):
        """Return the encoder's tokens."""
        return self.clip.tokenize(text)

    def encode_from_tokens(self, tokens, return_pooled=False):
        """Return embedding and pooled output."""
        embedding = self.clip.encode_from_tokens(tokens)
        return (embedding, embedding.sum(1)) if return_pooled else embedding


def test_the_direction_is_the_difference_of_mean_embeddings(tiny, node):
    clip = tiny[1]
    given = conditioning(clip, "a photo of a fox at night")
    moved, bare = edit(node, clip, given, "a fox\na cat", "a panda", "a photo of {}\na drawing of {}", 0.5)
    means = [
        encoded(clip, *(f"a {kind} of {words}" for words in lines for kind in ("photo", "drawing"))).mean(0)
        for lines in (("a fox", "a cat"), ("a panda",))
    ]
    assert torch.allclose(bare[0][0][0], means[1] - means[0], atol=1e-6)
    assert torch.allclose(moved[0][0], given[0][0] + 0.5 * bare[0][0], atol=1e-6)


def test_whole_sentences_and_a_word_template_are_the_same(tiny, node):
    given = conditioning(tiny[1], "a photo of a fox")
    words = edit(node, tiny[1], given, template="a photo of {}\n{} at night")
    whole = edit(
        node,
        tiny[1],
        given,
        "a photo of a fox\na fox at night",
        "a photo of a panda\na panda at night",
        template="",
    )
    assert torch.equal(words[0][0][0], whole[0][0][0])


def test_strength_zero_is_the_conditioning_itself(tiny, node):
    given = conditioning(tiny[1], "a photo of a fox")
    assert edit(node, tiny[1], given, strength=0.0)[0] is given


def test_the_way_back_leads_back(tiny, node):
    given = conditioning(tiny[1], "a photo of a fox")
    there = edit(node, tiny[1], given)[0]
    assert not torch.allclose(there[0][0], given[0][0], atol=1e-2)
    for back in (
        edit(node, tiny[1], there, strength=-1.0),
        edit(node, tiny[1], there, "a panda", "a fox"),
    ):
        assert torch.allclose(back[0][0][0], given[0][0], atol=1e-5)


def test_every_entry_moves_and_keeps_its_other_settings(tiny, node):
    text = conditioning(tiny[1], "a photo of a fox")[0][0]
    given = [
        [text, {"area": (8, 8, 0, 0), "foreign": [1, 2]}],
        [text * 2, {"pooled_output": None, "strength": 0.5}],
    ]
    moved, bare = edit(node, tiny[1], given)
    assert [settings for _, settings in moved] == [settings for _, settings in given]
    for (after, _), (before, _) in zip(moved, given, strict=True):
        assert torch.allclose(after - before, bare[0][0], atol=1e-5)
    assert torch.equal(given[0][0], text)  # what came in stays


def test_pooled_outputs_move_too(tiny, node):
    clip = Pooling(tiny[1])
    text = conditioning(tiny[1], "a photo of a fox")[0][0]
    given = [[text, {"pooled_output": torch.ones(1, text.shape[-1])}]]
    moved, bare = edit(node, clip, given, strength=2.0)
    pooled = bare[0][1]["pooled_output"]
    assert torch.allclose(pooled, bare[0][0].sum(1), atol=1e-4) and pooled.norm() > 0
    assert torch.allclose(moved[0][1]["pooled_output"], 1 + 2 * pooled, atol=1e-5)


def test_long_prompts_and_long_sentences_keep_their_length(tiny, node):
    long = "a photo of " + ", ".join(["a fox in the snow"] * 30)
    short = conditioning(tiny[1], "a photo of a fox")
    assert conditioning(tiny[1], long)[0][0].shape[1] > 77
    moved, bare = edit(node, tiny[1], conditioning(tiny[1], long))
    chunks = moved[0][0] - conditioning(tiny[1], long)[0][0]
    assert bare[0][0].shape[1] == 77 and torch.allclose(chunks[:, 77:154], bare[0][0], atol=1e-4)
    moved, bare = edit(node, tiny[1], short, long, "a panda", "")
    assert bare[0][0].shape[1] > 77 and moved[0][0].shape == short[0][0].shape


def test_the_words_of_the_prompt_stay_known(tiny, node):
    from guided_synthesis.nodes.host.prompts import PROMPT_KEY, encode

    with torch.inference_mode():
        given, prompt = encode(tiny[1], "a photo of a fox")
    assert edit(node, tiny[1], given)[0][0][1][PROMPT_KEY] is prompt


def test_the_picture_shows_the_target(host, tiny, node):
    judge = classifier.load()
    shown = []
    for text in ("a photo of a fox", "a photo of a fox in the snow"):
        moved = edit(node, tiny[1], conditioning(tiny[1], text))[0]
        latents = sample(host, tiny[0], tiny[1], positive=moved, cfg=5.0, steps=20)
        with torch.inference_mode():
            shown += judge.names(tiny[2].decode(latents).movedim(-1, 1))
    assert shown == [["panda"], ["panda"]]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"source": ""}, "source is empty"),
        ({"target": "\n"}, "target is empty"),
        ({"template": "a photo"}, "The template line 'a photo' has no {}"),
        ({"clip": None}, "The clip input holds no text encoder"),
        ({"given": [[torch.zeros(1, 77, 768), {}]]}, "The conditioning has 768 numbers a token"),
    ],
)
def test_bad_input_is_one_clear_sentence(tiny, node, change, sentence):
    settings = {"clip": tiny[1], "given": conditioning(tiny[1], "a fox")} | change
    with pytest.raises(ValueError, match=re.escape(sentence)):
        edit(node, **settings)
