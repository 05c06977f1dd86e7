"""The demo world: 128 px scenes of one or two emoji objects, drawn procedurally, with captions, masks and paintings.

The training script, the tests and the benchmarks share it. Everything follows from the seed:
`draw(make_spec(seed))` is the same scene on every machine with the same Pillow.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tiny_sd.art import NOUNS, sprite

SIZE = 128
STYLES = ("photo", "drawing", "watercolour")
PLACES = {
    "field": "in a green field",
    "night": "at night",
    "beach": "on a beach",
    "snow": "in the snow",
    "forest": "in a forest",
}
WALLS = {
    "white": (240, 240, 238),
    "red": (205, 52, 48),
    "blue": (66, 110, 215),
    "green": (88, 165, 96),
    "yellow": (246, 214, 88),
    "purple": (138, 84, 172),
}
HUES = {"red": 0, "yellow": 50, "green": 120, "blue": 220, "purple": 280}  # degrees
COLOURED = {
    "balloon": 355,
    "heart": 355,
    "apple": 355,
    "umbrella": 270,
    "mushroom": 355,
    "car": 355,
}  # own hue


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its noun, colour word (or None), centre and size as fractions of the picture."""

    noun: str
    colour: str | None
    x: float
    y: float
    size: float

    @property
    def words(self) -> str:
        """The noun phrase with its article, for example `an owl` or `a red balloon`."""
        phrase = f"{self.colour} {self.noun}" if self.colour else self.noun
        return ("an " if phrase[0] in "aeiou" else "a ") + phrase


@dataclass(frozen=True)
class Spec:
    """What a scene shows. `things[0]` is the main object: the one that the caption names first."""

    style: str
    place: str
    things: tuple[Thing, ...]
    relation: str
    art: str  # the sprite set under the style: photo or drawing
    seed: int

    @property
    def caption(self) -> str:
        """The scene in plain English."""
        if len(self.things) == 1:
            subject = self.things[0].words + self.relation
        else:
            subject = f"{self.things[0].words} {self.relation} {self.things[1].words}"
        place = PLACES.get(self.place) or f"in front of a {self.place} wall"
        return f"a {self.style} of {subject} {place}"


@dataclass(frozen=True)
class Scene:
    """A drawn scene: RGB picture (H, W, 3) uint8, its spec and one bool mask (H, W) per object."""

    image: np.ndarray
    spec: Spec
    masks: tuple[np.ndarray, ...]

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Bounding boxes (left, top, right, bottom) in px of the visible pixels of each object."""
        boxes = []
        for mask in self.masks:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        return boxes


def _thing(rng: random.Random, noun: str, place: str, x: float, size: float) -> Thing:
    colour = rng.choice([c for c in HUES if c != place]) if noun in COLOURED and rng.random() < 0.85 else None
    floats = noun in ("balloon", "moon", "star", "rocket", "heart") or place in WALLS
    y = rng.uniform(0.40, 0.56) if floats else rng.uniform(0.62, 0.68) - 0.15 * (size - 0.45)
    return Thing(noun, colour, x, y, size)


def make_spec(seed: int, things: int | None = None, style: str | None = None) -> Spec:
    """Draw a random spec; `things` (1 or 2) and `style` may be fixed."""
    rng = random.Random(seed)
    style = style or rng.choices(STYLES, (0.45, 0.35, 0.2))[0]
    place = rng.choice([*PLACES] * 2 + [*WALLS])
    nouns = rng.sample(list(NOUNS), 2)
    if things is None:
        things = 1 if rng.random() < 0.55 else 2
    if things == 1:
        size = rng.uniform(0.48, 0.74)
        side = rng.choices(("", " on the left", " on the right"), (0.5, 0.25, 0.25))[0]
        x = {"": rng.uniform(0.42, 0.58), " on the left": 0.06 + size / 2, " on the right": 0.94 - size / 2}[
            side
        ]
        spec_things, relation = (_thing(rng, nouns[0], place, x, size),), side
    else:
        left = _thing(rng, nouns[0], place, rng.uniform(0.25, 0.29), rng.uniform(0.40, 0.47))
        right = _thing(rng, nouns[1], place, rng.uniform(0.71, 0.75), rng.uniform(0.40, 0.47))
        relation = rng.choice(("to the left of", "to the right of", "and"))
        order = (right, left) if relation == "to the right of" else (left, right)
        if relation == "and" and rng.random() < 0.5:
            order = (right, left)
        spec_things = order
    art = style if style != "watercolour" else rng.choice(("photo", "drawing"))
    return Spec(style, place, spec_things, relation, art, seed)


def _gradient(top: tuple[int, ...], bottom: tuple[int, ...], height: int) -> np.ndarray:
    t = np.linspace(0, 1, height)[:, None, None]
    return (np.array(top) * (1 - t) + np.array(bottom) * t).repeat(SIZE, axis=1)


def _background(place: str, rng: random.Random) -> Image.Image:
    if place in WALLS:
        colour = np.array(WALLS[place])
        return Image.fromarray(_gradient(colour * 1.04, colour * 0.88, SIZE).clip(0, 255).astype(np.uint8))
    skies = {
        "field": ((96, 168, 240), (206, 232, 252)),
        "night": ((12, 12, 42), (36, 34, 88)),
        "beach": ((110, 186, 246), (214, 240, 254)),
        "snow": ((158, 178, 208), (206, 216, 230)),
        "forest": ((34, 84, 46), (66, 104, 56)),
    }
    grounds = {
        "field": ((118, 196, 66), (70, 156, 44)),
        "night": ((30, 46, 50), (18, 28, 34)),
        "beach": ((250, 226, 166), (232, 200, 128)),
        "snow": ((232, 238, 248), (216, 226, 240)),
        "forest": ((52, 92, 36), (34, 62, 26)),
    }
    horizon = round(SIZE * rng.uniform(0.50, 0.60))
    picture = np.concatenate([_gradient(*skies[place], horizon), _gradient(*grounds[place], SIZE - horizon)])
    image = Image.fromarray(picture.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    if place == "beach":
        pen.rectangle((0, horizon - 14, SIZE, horizon), fill=(32, 142, 196))
    if place == "forest":
        for _ in range(6):
            x, width = rng.randrange(SIZE), rng.randrange(6, 12)
            pen.rectangle((x, 0, x + width, horizon + 3), fill=(92, 62, 44))
    if place in ("night", "snow"):
        for _ in range(24):
            x, y = rng.randrange(SIZE), rng.randrange(horizon if place == "night" else SIZE)
            pen.rectangle((x, y, x + rng.randrange(2), y + rng.randrange(2)), fill=(250, 250, 255))
    if place == "field":
        x = rng.randrange(SIZE)
        pen.ellipse((x - 70, horizon - 8, x + 70, horizon + 40), fill=(118, 196, 66))
    return image


def _recolour(image: Image.Image, own_hue: int, hue: int) -> Image.Image:
    hsv = np.array(image.convert("RGB").convert("HSV")).astype(int)
    own = round(own_hue * 255 / 360)
    distance = (hsv[..., 0] - own + 128) % 256 - 128
    moved = (np.abs(distance) < 26) & (hsv[..., 1] > 50)
    target = (round(hue * 255 / 360) + distance // 3) % 256
    hsv[..., 0] = np.where(moved, target, hsv[..., 0])
    out = Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")
    out.putalpha(image.getchannel("A"))
    return out


def _place_thing(image: Image.Image, thing: Thing, spec: Spec) -> tuple[Image.Image, np.ndarray]:
    picture = sprite(thing.noun, spec.art)
    if thing.colour:
        picture = _recolour(picture, COLOURED[thing.noun], HUES[thing.colour])
    scale = thing.size * SIZE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left = min(max(round(thing.x * SIZE - width / 2), 1), SIZE - width - 1)
    top = min(max(round(thing.y * SIZE - height / 2), 1), SIZE - height - 1)
    shadow = Image.new("L", (SIZE, SIZE))
    foot = top + height
    ImageDraw.Draw(shadow).ellipse((left + 0.1 * width, foot - 5, left + 0.9 * width, foot + 4), fill=90)
    image.paste((0, 0, 0), mask=shadow.filter(ImageFilter.GaussianBlur(3)))
    image.paste(picture.convert("RGB"), (left, top), picture.getchannel("A"))
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + height, left : left + width] = np.array(picture.getchannel("A")) > 127
    return image, mask


def _watercolour(image: Image.Image, seed: int) -> Image.Image:
    """Flat washes with darker rims on rough, pale paper."""
    wash = image.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.SMOOTH)
    rims = (
        np.array(wash.convert("L").filter(ImageFilter.FIND_EDGES).filter(ImageFilter.GaussianBlur(1))) / 255.0
    )
    rims[:2], rims[-2:], rims[:, :2], rims[:, -2:] = 0, 0, 0, 0
    noise = np.random.default_rng(seed)
    grain = Image.fromarray(noise.integers(0, 256, (7, 7), dtype=np.uint8)).resize(image.size, Image.BICUBIC)
    wet = (np.array(grain)[..., None] / 255.0 - 0.5) * 0.3
    colour = np.array(wash) / 255.0
    pale = 1 - (1 - colour) * (0.72 + wet)
    pale = pale * (1 - 0.55 * rims[..., None])
    return Image.fromarray((pale.clip(0, 1) * 255).astype(np.uint8))


def draw(spec: Spec) -> Scene:
    """Draw the scene that `spec` describes; nearer (later) objects hide earlier ones in picture and masks."""
    image = _background(spec.place, random.Random(spec.seed + 1))
    masks: list[np.ndarray] = []
    for thing in spec.things:
        image, mask = _place_thing(image, thing, spec)
        masks = [earlier & ~mask for earlier in masks] + [mask]
    if spec.style == "watercolour":
        image = _watercolour(image, spec.seed)
    return Scene(np.array(image), spec, tuple(masks))


def stroke_painting(image: np.ndarray, colours: int = 5, brush: int = 17) -> np.ndarray:
    """Return what a person would paint of `image` (H, W, 3) uint8: strokes `brush` px wide (odd) in a few colours.

    With the defaults the classifier still names the main object in about half of the paintings.
    """
    wide = Image.fromarray(image).filter(ImageFilter.MedianFilter(brush))
    strokes = wide.filter(ImageFilter.MedianFilter(2 * (brush // 3) + 1))
    return np.array(strokes.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=3).convert("RGB"))
