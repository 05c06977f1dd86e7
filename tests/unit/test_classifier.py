"""The judge of the demo model: it names the objects of real scenes, also of soft ones, and checks shapes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from tiny_sd import classifier, data
from tiny_sd.art import NOUNS
from tiny_sd.world import Scene, draw, make_spec


@pytest.fixture(scope="module")
def judge() -> classifier.Classifier:
    """The committed classifier."""
    return classifier.load()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Held-out scenes that no training has seen."""
    return [draw(make_spec(data.HELD_OUT + 5000 + index)) for index in range(100)]


def _named(judge: classifier.Classifier, images: torch.Tensor, scenes: list[Scene]) -> tuple[float, float]:
    hits = judge.recognised(images, [scene.spec for scene in scenes])
    second = [hit[1] for hit in hits if len(hit) == 2]
    return sum(hit[0] for hit in hits) / len(hits), sum(second) / len(second)


def test_names_the_objects_of_held_out_scenes(judge: classifier.Classifier, scenes: list[Scene]) -> None:
    main, second = _named(judge, classifier.pictures([scene.image for scene in scenes]), scenes)
    assert main >= 0.95
    assert second >= 0.90


@pytest.mark.parametrize("turns", range(4))
def test_the_turned_one_names_them_in_any_position(scenes: list[Scene], turns: int) -> None:
    images = classifier.pictures([scene.image for scene in scenes]).rot90(turns, (2, 3))
    main, second = _named(classifier.load(classifier.TURNED), images, scenes)
    assert main >= 0.95
    assert second >= 0.90


def test_names_them_in_soft_pictures_too(judge: classifier.Classifier, scenes: list[Scene]) -> None:
    sharp = classifier.pictures([scene.image for scene in scenes])
    main, _ = _named(judge, interpolate(avg_pool2d(sharp, 3, 3), size=128, mode="bilinear"), scenes)
    assert main >= 0.90


def test_does_not_find_objects_that_are_not_asked_for(
    judge: classifier.Classifier, scenes: list[Scene]
) -> None:
    """Pictures judged by their neighbours' captions: agreement falls to chance."""
    images = classifier.pictures([scene.image for scene in scenes])
    main, _ = _named(judge, images, scenes[1:] + scenes[:1])
    assert main < 0.2


def test_scores_are_one_probability_per_noun_and_each_picture_stands_alone(
    judge: classifier.Classifier, scenes: list[Scene]
) -> None:
    images = classifier.pictures([scene.image for scene in scenes[:5]])
    scores = judge.scores(images)
    assert scores.shape == (5, len(NOUNS))
    assert scores.min() >= 0 and scores.max() <= 1
    assert torch.allclose(scores[3:4], judge.scores(images[3:4]), atol=1e-5)


def test_names_gives_as_many_nouns_as_asked_best_first(
    judge: classifier.Classifier, scenes: list[Scene]
) -> None:
    images = classifier.pictures([scene.image for scene in scenes[:3]])
    for row, names in zip(judge.scores(images), judge.names(images, 3), strict=True):
        values = [float(row[classifier.NAMES.index(name)]) for name in names]
        assert len(names) == 3
        assert values == sorted(values, reverse=True)
        assert values[0] == float(row.max())


def test_a_picture_of_another_shape_is_refused_with_a_sentence(judge: classifier.Classifier) -> None:
    with pytest.raises(ValueError, match="wants pictures of shape"):
        judge.scores(torch.zeros(1, 128, 128, 3))
    with pytest.raises(ValueError, match="one spec"):
        judge.recognised(torch.zeros(2, 3, 128, 128), [make_spec(0)])
