"""The demo world: the seed decides everything; captions, masks and paintings tell the truth about it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tiny_sd import data
from tiny_sd.art import FOLDER, NOUNS
from tiny_sd.world import PLACES, SIZE, STYLES, WALLS, Scene, Thing, draw, make_spec, stroke_painting

SEEDS = range(data.HELD_OUT, data.HELD_OUT + 120)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """A hundred and twenty held-out scenes."""
    return [draw(make_spec(seed)) for seed in SEEDS]


def _centre(mask: np.ndarray) -> float:
    return float(np.flatnonzero(mask.any(0)).mean())


def test_same_seed_gives_the_same_scene() -> None:
    for seed in range(data.HELD_OUT, data.HELD_OUT + 12):
        first, again = draw(make_spec(seed)), draw(make_spec(seed))
        assert first.spec == again.spec
        assert np.array_equal(first.image, again.image)
        assert all(np.array_equal(a, b) for a, b in zip(first.masks, again.masks, strict=True))


def test_another_seed_gives_another_scene(scenes: list[Scene]) -> None:
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_pictures_are_rgb_bytes_of_the_stated_size(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (SIZE, SIZE, 3)
        assert scene.image.dtype == np.uint8


def test_number_of_things_and_style_can_be_fixed() -> None:
    for seed in range(20):
        for count in (1, 2):
            for style in STYLES:
                spec = make_spec(seed, things=count, style=style)
                assert len(spec.things) == count
                assert spec.style == style


def test_held_out_specs_cover_styles_places_counts_and_nouns() -> None:
    specs = [make_spec(data.HELD_OUT + index) for index in range(400)]
    assert {spec.style for spec in specs} == set(STYLES)
    assert {spec.place for spec in specs} == {*PLACES, *WALLS}
    assert {len(spec.things) for spec in specs} == {1, 2}
    assert {thing.noun for spec in specs for thing in spec.things} == set(NOUNS)


def test_held_out_seeds_lie_beyond_every_training_seed() -> None:
    trained = {make_spec(seed) for seed in range(300)}
    assert data.HELD_OUT > 1_000_000
    assert not trained & {make_spec(data.HELD_OUT + index) for index in range(300)}


def test_caption_says_style_objects_relation_and_place_in_order(scenes: list[Scene]) -> None:
    for spec in (scene.spec for scene in scenes):
        where = PLACES.get(spec.place, f"in front of a {spec.place} wall")
        assert spec.caption.startswith(f"a {spec.style} of {spec.things[0].words}")
        assert spec.caption.endswith(where)
        middle = spec.caption[len(f"a {spec.style} of ") : -len(where)].strip()
        if len(spec.things) == 2:
            assert middle.split(f" {spec.relation} ") == [thing.words for thing in spec.things]
        else:
            assert middle == spec.things[0].words + spec.relation
        assert "None" not in spec.caption


@pytest.mark.parametrize(
    ("noun", "colour", "words"),
    [
        ("owl", None, "an owl"),
        ("fox", None, "a fox"),
        ("apple", "red", "a red apple"),
        ("apple", None, "an apple"),
    ],
)
def test_noun_phrase_has_the_right_article(noun: str, colour: str | None, words: str) -> None:
    assert Thing(noun, colour, 0.5, 0.5, 0.5).words == words


def test_masks_lie_inside_the_picture_and_do_not_overlap(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len(scene.masks) == len(scene.spec.things)
        for mask in scene.masks:
            assert mask.shape == (SIZE, SIZE)
            assert mask.dtype == bool
            assert mask.sum() > 100
            assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        assert np.sum(scene.masks, axis=0).max() == 1


def test_boxes_are_the_tight_frames_of_the_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        for (left, top, right, bottom), mask in zip(scene.boxes, scene.masks, strict=True):
            assert 0 <= left < right <= SIZE
            assert 0 <= top < bottom <= SIZE
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert mask[top].any() and mask[bottom - 1].any()
            assert mask[:, left].any() and mask[:, right - 1].any()


def test_left_and_right_in_the_caption_are_left_and_right_in_the_masks(scenes: list[Scene]) -> None:
    seen = set()
    for scene in scenes:
        centres = [_centre(mask) for mask in scene.masks]
        relation = scene.spec.relation
        seen.add(relation)
        if relation == "to the left of":
            assert centres[0] < centres[1]
        elif relation == "to the right of":
            assert centres[0] > centres[1]
        elif relation == " on the left":
            assert centres[0] < SIZE / 2
        elif relation == " on the right":
            assert centres[0] > SIZE / 2
    assert seen == {"", "and", " on the left", " on the right", "to the left of", "to the right of"}


def test_the_mask_is_where_the_object_changes_the_picture() -> None:
    """Two scenes that differ only in the noun differ mostly inside their two masks."""
    spec = make_spec(data.HELD_OUT, things=1, style="photo")
    spec = dataclasses.replace(spec, place="white", things=(Thing("fox", None, 0.5, 0.5, 0.6),))
    other = dataclasses.replace(spec, things=(Thing("car", None, 0.5, 0.5, 0.6),))
    fox, car = draw(spec), draw(other)
    changed = np.abs(fox.image.astype(int) - car.image).max(2) > 60
    inside = fox.masks[0] | car.masks[0]
    assert changed[inside].mean() > 0.5
    assert changed[~inside].mean() < 0.03


def test_a_colour_word_changes_the_object_and_not_the_background() -> None:
    spec = dataclasses.replace(make_spec(7, things=1, style="photo"), place="white")
    pictures = {}
    for colour in ("red", "blue"):
        thing = Thing("balloon", colour, 0.5, 0.5, 0.6)
        scene = draw(dataclasses.replace(spec, things=(thing,)))
        pictures[colour] = scene.image[scene.masks[0]].mean(0)
        background = scene.image[0]
    red, blue = pictures["red"], pictures["blue"]
    assert red[0] > red[2] and blue[2] > blue[0]
    assert np.abs(background.astype(int) - draw(spec).image[0]).max() == 0


def test_watercolour_is_paler_than_the_photo_of_the_same_scene() -> None:
    for seed in range(5):
        photo = make_spec(seed, style="photo")
        washed = draw(dataclasses.replace(photo, style="watercolour")).image
        assert washed.astype(float).mean() > draw(photo).image.astype(float).mean()


@pytest.mark.parametrize("colours", [2, 4, 8])
def test_a_stroke_painting_has_few_colours_and_keeps_the_picture(scenes: list[Scene], colours: int) -> None:
    for scene in scenes[:10]:
        painting = stroke_painting(scene.image, colours)
        assert painting.shape == scene.image.shape and painting.dtype == np.uint8
        assert 1 < len(np.unique(painting.reshape(-1, 3), axis=0)) <= colours
        flat = np.broadcast_to(scene.image.mean((0, 1)), scene.image.shape)
        error = np.square(painting.astype(float) - scene.image).mean()
        assert error < np.square(flat - scene.image).mean()


def test_a_stroke_painting_is_the_same_each_time(scenes: list[Scene]) -> None:
    assert np.array_equal(stroke_painting(scenes[0].image), stroke_painting(scenes[0].image))


def test_every_noun_has_a_sprite_in_both_art_styles() -> None:
    for style in ("photo", "drawing"):
        assert {file.stem for file in (FOLDER / style).glob("*.webp")} == set(NOUNS)
