"""Prompt with Words on the real host: the condition is CLIPTextEncode's, the spans are the tokenizer's."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

LONG = ", ".join(["a photo of a fox and an apple", "a strawberry in the snow", "a sailboat at night"] * 5)
TEXTS = [
    "a photo of a fox and an apple in the snow",
    "",
    "a (photo:1.3) of ((a fox)) and an (apple:0.4)es",
    "A PHOTO of\na fox,, it's 2024! \\(really\\)",
    "caf\u00e9 na\u00efve \u7f8e\u4e3d \U0001f98a",
    LONG,
    "xylophonistically incomprehensibilities " * 12,
]


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import prompt

    return prompt.PromptWords


@pytest.fixture(scope="module")
def prompts(host):
    from guided_synthesis.nodes.host import prompts

    return prompts


@pytest.fixture
def embeddings(tiny, tmp_path, monkeypatch):
    """Put embeddings of one, three and 90 vectors where the demo model's tokenizer looks."""
    for name, count in (("one", 1), ("three", 3), ("ninety", 90)):
        vectors = torch.randn(count, 64, generator=torch.Generator().manual_seed(count))
        save_file({"clip_l": vectors}, tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(tiny[1].tokenizer.clip_l, "embedding_directory", [str(tmp_path)])


def execute(node, clip, text):
    with torch.inference_mode():
        return node.execute(clip, text).args


def check_condition(host, node, tiny, text):
    """The node's condition is the host's to the bit, but for the words that it carries; return the prompt."""
    from guided_synthesis.nodes.host.prompts import PROMPT_KEY

    found, prompt = execute(node, tiny[1], text)
    with torch.inference_mode():
        theirs = host.nodes.CLIPTextEncode().encode(tiny[1], text)[0]
    assert len(found) == len(theirs) == 1 and torch.equal(found[0][0], theirs[0][0])
    assert set(found[0][1]) == {*theirs[0][1], PROMPT_KEY} and found[0][1][PROMPT_KEY] is prompt
    for key, value in theirs[0][1].items():
        assert (
            torch.equal(found[0][1][key], value)
            if isinstance(value, torch.Tensor)
            else found[0][1][key] == value
        )
    assert prompt.length == found[0][0].shape[1] and prompt.text == text
    return prompt


def check_spans(tokenizer, chunks, prompt):
    """Each word's tokens are what the tokenizer makes of that word alone; together they are all there are."""
    tokens = [token for chunk in chunks for token, *_ in chunk]
    for word in prompt.words:
        alone = tokenizer.tokenizer(word.text)["input_ids"][1:-1]
        assert [tokens[at] for at in word.tokens] == alone, word
    named = [at for word in prompt.words for at in word.tokens]
    numbered = tokenizer.tokenize_with_weights(prompt.text, return_word_ids=True)
    assert named == [at for at, token in enumerate(t for chunk in numbered for t in chunk) if token[2]]


@pytest.mark.parametrize("text", TEXTS)
def test_the_condition_is_the_hosts_to_the_bit_and_the_spans_are_the_tokenizers(host, node, tiny, text):
    prompt = check_condition(host, node, tiny, text)
    check_spans(tiny[1].tokenizer.clip_l, tiny[1].tokenize(text)["l"], prompt)


def test_words_of_a_plain_prompt_are_found_where_they_stand(node, tiny):
    prompt = execute(node, tiny[1], TEXTS[0])[1]
    assert [word.text for word in prompt.words] == TEXTS[0].split()
    assert prompt.find("fox") == (5,) and prompt.find("a fox") == (4, 5) and prompt.ends == (12,)


def test_weights_do_not_hide_words(node, tiny):
    prompt = execute(node, tiny[1], TEXTS[2])[1]
    assert [word.text for word in prompt.words] == "a photo of a fox and an apple es".split()


def test_a_long_prompt_has_several_chunks_each_with_an_end(node, tiny):
    prompt = execute(node, tiny[1], LONG)[1]
    tokens = [token for chunk in tiny[1].tokenize(LONG)["l"] for token, *_ in chunk]
    assert prompt.length == 154 and len(prompt.ends) == 2
    assert all(tokens[end] == 49407 and tokens[end - 1] != 49407 for end in prompt.ends)
    assert len(prompt.find("fox")) == 5 and {at // 77 for at in prompt.find("fox")} == {0, 1}


def test_a_word_broken_by_the_end_of_a_chunk_keeps_its_tokens_on_both_sides(node, tiny):
    prompt = execute(node, tiny[1], "a " + "xylophonistically " * 20)[1]
    across = [word for word in prompt.words if len({at // 77 for at in word.tokens}) == 2]
    assert len(across) == 1 and across[0].text == "xylophonistically"


@pytest.mark.parametrize(
    "text, spans",
    [
        ("a embedding:one fox", {"embedding:one": (2,), "fox": (3,)}),
        ("a embedding:three, fox", {"embedding:three": (2, 3, 4), "fox": (6,)}),
        (
            "embedding:one embedding:three embedding:one",
            {"embedding:one": (1, 5), "embedding:three": (2, 3, 4)},
        ),
        ("(embedding:three:1.4) fox", {"embedding:three": (1, 2, 3), "fox": (4,)}),
        ("embedding:absent embedding:one fox", {"embedding:one": (1,), "fox": (2,)}),
        ("embedding:ninety fox", {"embedding:ninety": (*range(1, 76), *range(78, 93)), "fox": (93,)}),
    ],
)
def test_embeddings_are_words_by_their_name(host, node, tiny, embeddings, text, spans):
    prompt = check_condition(host, node, tiny, text)
    assert {word: prompt.find(word) for word in spans} == spans


def clip_of(tokenizer):
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


@pytest.mark.parametrize("text", TEXTS)
def test_both_encoders_of_sdxl_are_read(host, prompts, text):
    """They pad with different tokens, and one of them pads with the token of `!`."""
    import comfy.sdxl_clip

    tokenizer = comfy.sdxl_clip.SDXLTokenizer()
    prompt = prompts.words_of(clip_of(tokenizer), text)
    for name in ("l", "g"):
        one = getattr(tokenizer, f"clip_{name}")
        check_spans(one, tokenizer.tokenize_with_weights(text)[name], prompt)
    assert prompt.length == 77 * len(tokenizer.tokenize_with_weights(text)["l"])


def test_an_embedding_of_one_encoder_of_sdxl_only_is_a_sentence_and_of_both_unites_the_spans(
    prompts, host, tmp_path
):
    import comfy.sdxl_clip

    tokenizer = comfy.sdxl_clip.SDXLTokenizer(embedding_directory=[str(tmp_path)])
    save_file({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(2, 1280)}, tmp_path / "both.safetensors")
    prompt = prompts.words_of(clip_of(tokenizer), "a embedding:both fox")
    assert prompt.find("embedding:both") == (2, 3) and prompt.find("fox") == (3, 4)
    tokenizer.clip_g.embedding_directory = [str(tmp_path / "elsewhere")]
    with pytest.raises(ValueError, match="cut the prompt into different words"):
        prompts.words_of(clip_of(tokenizer), "a embedding:both fox")


def test_text_encoders_other_than_clip_are_one_sentence(host, prompts):
    import comfy.text_encoders.pixart_t5

    clip = clip_of(comfy.text_encoders.pixart_t5.PixArtTokenizer())
    with pytest.raises(ValueError, match=r"\(PixArtTokenizer\) is not CLIP's, .* Connect the CLIP output"):
        prompts.words_of(clip, "a fox")


def test_no_text_encoder_is_one_sentence(node):
    with pytest.raises(ValueError, match="The clip input holds no text encoder"):
        node.execute(None, "a fox")


def test_scheduled_conditions_all_carry_the_words(node, tiny):
    """A text encoder with hooks gives several conditions, one for each stretch of the schedule."""
    from guided_synthesis.nodes.host.prompts import PROMPT_KEY

    clip = SimpleNamespace(
        tokenizer=tiny[1].tokenizer,
        tokenize=tiny[1].tokenize,
        encode_from_tokens_scheduled=lambda tokens: [[torch.ones(1), {"a": 1}], [torch.ones(1), {"a": 2}]],
    )
    found, prompt = execute(node, clip, "a fox")
    assert [settings for _, settings in found] == [{"a": a, PROMPT_KEY: prompt} for a in (1, 2)]
