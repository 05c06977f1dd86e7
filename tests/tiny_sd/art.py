"""The sprites of the demo world, cut from two freely licensed emoji sets (both MIT, see NOTICE.md).

`art/photo/NOUN.webp` comes from npm `@lobehub/fluent-emoji-3d@1.1.0`, `art/drawing/NOUN.webp` from npm
`fluentui-emoji@1.3.0` (SVG, rasterised with resvg). They are committed, so that drawing a scene needs no
network; `python art.py --rebuild FOLDER_WITH_TGZ` makes them again from the two archives (`npm pack` fetches them).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tarfile
from functools import cache
from pathlib import Path

from PIL import Image

SPRITE_SIZE = 112
FOLDER = Path(__file__).parent / "art"
ARCHIVES = {
    "photo": (
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "drawing": (
        "fluentui-emoji-1.3.0.tgz",
        "ec892e607e854859b812c7d827801756adc19955b0ef56d4ae8afcddd19492c5",
    ),
}
# noun -> (code point in the 3D set, file stem in the flat set)
NOUNS = {
    "fox": ("1f98a", "fox"),
    "cat": ("1f431", "cat-face"),
    "dog": ("1f436", "dog-face"),
    "panda": ("1f43c", "panda"),
    "lion": ("1f981", "lion"),
    "pig": ("1f437", "pig-face"),
    "frog": ("1f438", "frog"),
    "rabbit": ("1f430", "rabbit-face"),
    "owl": ("1f989", "owl"),
    "penguin": ("1f427", "penguin"),
    "duck": ("1f986", "duck"),
    "robot": ("1f916", "robot"),
    "snowman": ("26c4", "snowman-without-snow"),
    "castle": ("1f3f0", "castle"),
    "house": ("1f3e0", "house"),
    "tree": ("1f333", "deciduous-tree"),
    "cactus": ("1f335", "cactus"),
    "mushroom": ("1f344", "mushroom"),
    "sunflower": ("1f33b", "sunflower"),
    "tulip": ("1f337", "tulip"),
    "apple": ("1f34e", "red-apple"),
    "banana": ("1f34c", "banana"),
    "strawberry": ("1f353", "strawberry"),
    "pizza": ("1f355", "pizza"),
    "heart": ("2764-fe0f", "red-heart"),
    "star": ("2b50", "star"),
    "moon": ("1f319", "crescent-moon"),
    "balloon": ("1f388", "balloon"),
    "umbrella": ("2602-fe0f", "umbrella"),
    "rocket": ("1f680", "rocket"),
    "sailboat": ("26f5", "sailboat"),
    "car": ("1f697", "automobile"),
}


@cache
def sprite(noun: str, style: str) -> Image.Image:
    """Return the RGBA sprite of `noun` in art style `photo` or `drawing`, cropped to its visible pixels."""
    image = Image.open(FOLDER / style / f"{noun}.webp").convert("RGBA")
    return image.crop(image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())


def _rasterise(data: bytes) -> Image.Image:
    import resvg_py

    return Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=4 * SPRITE_SIZE)))
    )


def rebuild(folder: Path) -> None:
    """Cut every sprite out of the two npm archives in `folder`; raises ValueError if an archive is another one."""
    for style, (archive, sha256) in ARCHIVES.items():
        data = (folder / archive).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"{archive} is not the pinned archive; fetch it again with npm pack.")
        (FOLDER / style).mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for noun, (code_point, stem) in NOUNS.items():
                if style == "photo":
                    raw = tar.extractfile(f"package/assets/{code_point}.webp").read()
                    image = Image.open(io.BytesIO(raw))
                else:
                    image = _rasterise(tar.extractfile(f"package/icons/flat/{stem}.svg").read())
                image = image.convert("RGBA").resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS)
                image.save(FOLDER / style / f"{noun}.webp", quality=92, method=6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rebuild", type=Path, required=True, metavar="FOLDER_WITH_TGZ")
    rebuild(parser.parse_args().rebuild)
