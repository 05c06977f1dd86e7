"""Apply View and View Animation on the real host: readings, films, the player's sheet, films saved, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from guided_synthesis.guidance.views.registry import VIEWS, Parameters, make
from tiny_sd.world import draw, make_spec

SETTINGS = {
    "hold": 0.5, "transition": 1.0, "fps": 8.0, "ease": "cubic", "loop": True, "caption_size": 8.0
}  # fmt: skip
HOLD, WAY = 4, 8  # frames of these
RECEDING = ("low pass", "triple pass low")  # their films end far away


@pytest.fixture(scope="module")
def pack(host):
    from guided_synthesis.guidance import animation
    from guided_synthesis.guidance.views.protocol import Reading, View
    from guided_synthesis.nodes import view_pictures
    from guided_synthesis.nodes.host import view_player

    class Identity(View):
        """The picture as it is."""

        def view(self, x):
            """Be the same."""
            return x

        def frame(self, image, t):
            """Be the same."""
            return image

    class Flip(View):
        """Upside down, on the way there ever darker in the middle."""

        def check(self, height, width):
            """Refuse pictures of one row."""
            if height == 1:
                raise ValueError("flip: the picture has only 1 row.")

        def view(self, x):
            """Turn over."""
            return x.flip(-2)

        def frame(self, image, t):
            """Fade from one to the other."""
            return image * (1 - t) + t * image.flip(-2)

    class Turn(View):
        """A quarter turn."""

        def view(self, x):
            """Turn clockwise."""
            return x.rot90(-1, (-2, -1))

        def frame(self, image, t):
            """Jump half way, on a larger canvas."""
            side = 2 * max(image.shape[-2:])
            return animation.on_canvas(image if t < 0.5 else self.view(image), side, side)

    def chain(*views, titles=("as it is", "upside down", "turned")):
        return tuple(Reading(view, title=title) for view, title in zip(views, titles, strict=False))

    return SimpleNamespace(
        nodes=view_pictures, player=view_player, chain=chain, Identity=Identity, Flip=Flip, Turn=Turn
    )


@pytest.fixture(scope="module")
def scenes():
    """IMAGE (2, 128, 128, 3)."""
    pictures = [torch.from_numpy(draw(make_spec(seed, things=1)).image.copy()) for seed in (3, 5)]
    return torch.stack(pictures).float() / 255


@pytest.fixture(autouse=True)
def temp(host, tmp_path, monkeypatch):
    """Keep the host's temp folder to this test."""
    monkeypatch.setattr(host.folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def reading(pack, image, views, index=0):
    with torch.inference_mode():
        return pack.nodes.ApplyView.execute(image, views, index)


def animated(pack, image, views, **changes):
    with torch.inference_mode():
        return pack.nodes.ViewAnimation.execute(image, views, **(SETTINGS | changes))


def player(out):
    """Return the one player of a node's `ui`."""
    (found,) = out.ui["guided_synthesis_views"]
    return found


def sheet_frames(temp, found):
    """Return (N, h, w, 3): the frames that a browser would cut from the sheet."""
    with Image.open(temp / found["sprite"]["subfolder"] / found["sprite"]["filename"]) as sheet:
        pixels = pil_to_tensor(sheet.convert("RGB")).movedim(0, -1).float() / 255
    cut = []
    for i in range(found["count"]):
        y, x = (i // found["columns"]) * found["height"], (i % found["columns"]) * found["width"]
        cut.append(pixels[y : y + found["height"], x : x + found["width"]])
    return torch.stack(cut)


def test_a_link_shows_its_reading_to_the_bit(pack, scenes):
    views = pack.chain(pack.Identity(), pack.Flip())
    assert torch.equal(reading(pack, scenes, views, 0).args[0], scenes)
    assert torch.equal(reading(pack, scenes, views, 1).args[0], scenes.flip(1))


def test_all_readings_come_picture_by_picture(pack, scenes):
    found = reading(pack, scenes, pack.chain(pack.Identity(), pack.Flip()), -1).args[0]
    one, two = scenes
    assert torch.equal(found, torch.stack([one, one.flip(0), two, two.flip(0)]))


def test_a_turned_picture_has_its_own_size_alone_and_lies_on_mid_grey_among_others(pack, scenes):
    wide, views = scenes[:1, 20:84], pack.chain(pack.Identity(), pack.Turn())
    turned = wide.movedim(-1, 1).rot90(-1, (-2, -1)).movedim(1, -1)
    assert torch.equal(reading(pack, wide, views, 1).args[0], turned)
    found = reading(pack, wide, views, -1).args[0]
    assert found.shape == (2, 128, 128, 3)
    assert torch.equal(found[0, 32:96], wide[0]) and torch.equal(found[1, :, 32:96], turned[0])
    assert (found[0, :32] == 0.5).all() and (found[1, :, 96:] == 0.5).all()


def test_transparency_is_put_on_white(pack, scenes):
    clear = torch.cat([scenes, torch.zeros(*scenes.shape[:3], 1)], -1)
    assert (reading(pack, clear, pack.chain(pack.Flip())).args[0] == 1).all()


@pytest.mark.parametrize("node", ["reading", "animated"])
def test_the_preview_shows_the_readings_and_the_player_beside_them(pack, scenes, temp, node):
    views = pack.chain(pack.Identity(), pack.Flip())
    run = {
        "reading": lambda: reading(pack, scenes, views, -1),
        "animated": lambda: animated(pack, scenes, views),
    }
    ui = run[node]().ui
    files = [Image.open(temp / shown["subfolder"] / shown["filename"]) for shown in ui["images"]]
    assert len(files) == 4 and all(file.size == (128, 128) for file in files)
    expected = (scenes[1].flip(0) * 255).byte()
    assert torch.equal(pil_to_tensor(files[3]).movedim(0, -1), expected)
    assert json.loads(json.dumps(ui))["guided_synthesis_views"] == ui["guided_synthesis_views"]
    assert len(ui["guided_synthesis_views"]) == 1 and all(shown["type"] == "temp" for shown in ui["images"])


def test_the_player_gets_a_sheet_on_which_each_stop_is_a_reading(pack, scenes, temp):
    found = player(reading(pack, scenes, pack.chain(pack.Flip(), pack.Identity(), pack.Turn()), 0))
    frames = sheet_frames(temp, found)
    assert found["sprite"]["type"] == "temp" and (temp / found["sprite"]["filename"]).suffix == ".webp"
    assert found["labels"] == ["upside down", "as it is", "turned"]  # the picture itself is the second view
    assert len(found["stops"]) == 3 and found["stops"][0] == 0 and found["stops"][-1] == found["count"] - 1
    middle = frames[:, 64:192, 64:192]  # of a canvas of 256 px
    for stop, turned in zip(found["stops"], (scenes[0], scenes[0].flip(0), scenes[0].rot90(-1)), strict=True):
        assert (middle[stop] - turned).abs().mean() < 0.02


def test_the_player_moves_evenly_between_its_stops(pack, scenes, temp):
    found = player(reading(pack, scenes, pack.chain(pack.Identity(), pack.Flip())))
    frames = sheet_frames(temp, found)
    assert (found["count"], found["stops"]) == (14, [0, 13])
    steps = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    assert steps.min() > 1e-4 and steps.argmax() in (5, 6, 7)


@pytest.mark.parametrize("views, count", [(1, 14), (2, 40), (3, 46), (6, 45), (30, 60)])
def test_a_sheet_stays_small_whatever_the_number_of_views(pack, temp, views, count):
    image = torch.rand(1, 64, 640, 3, generator=torch.Generator().manual_seed(0))
    chain = pack.chain(*[pack.Flip()] * views, titles=["flip"] * views)
    found = player(reading(pack, image, chain))
    assert found["count"] == count and len(found["stops"]) == len(found["labels"]) == views + 1
    assert (found["width"], found["height"]) == (320, 32)
    with Image.open(temp / found["sprite"]["filename"]) as sheet:
        assert max(sheet.size) <= 4096 and sheet.width == found["columns"] * 320


def test_a_film_of_many_frames_is_scaled_down_to_one_sheet(pack, temp):
    with torch.inference_mode():
        ui = pack.player.player_ui(torch.rand(300, 200, 320, 3), [0], ["many"])
    (found,) = ui[pack.player.KEY]
    with Image.open(temp / found["sprite"]["filename"]) as sheet:
        assert max(sheet.size) <= 4096
    assert found["count"] == 300 and (found["columns"], found["width"], found["height"]) == (18, 227, 142)


def test_two_runs_never_share_the_name_of_a_sheet(pack, scenes):
    views = pack.chain(pack.Flip())
    names = {player(reading(pack, scenes, views))["sprite"]["filename"] for _ in range(2)}
    assert len(names) == 2


def test_a_film_holds_the_picture_moves_to_each_reading_and_comes_back(pack, scenes):
    views = pack.chain(pack.Identity(), pack.Flip(), pack.Flip())
    film, fps = animated(pack, scenes[:1], views, caption_size=0.0).args
    once = HOLD + WAY + HOLD + WAY
    assert film.shape == (2 * once, 128, 128, 3) and fps == 8.0
    assert all(torch.equal(film[i], scenes[0]) for i in (0, HOLD - 1, once))
    assert all(torch.equal(film[HOLD + WAY + i], scenes[0].flip(0)) for i in range(HOLD))
    assert torch.equal(film[HOLD : HOLD + WAY], film[once - WAY : once].flip(0))
    share = 4 * (1 / (WAY + 1)) ** 3  # cubic
    assert torch.allclose(film[HOLD], scenes[0] * (1 - share) + share * scenes[0].flip(0), atol=1e-6)
    assert torch.equal(film[once:], film[:once])


def test_without_loop_it_ends_at_the_last_reading(pack, scenes):
    film = animated(pack, scenes[:1], pack.chain(pack.Flip()), loop=False, caption_size=0.0).args[0]
    assert len(film) == 2 * HOLD + WAY and torch.equal(film[-1], scenes[0].flip(0))


def test_several_pictures_are_shown_one_after_the_other(pack, scenes):
    views = pack.chain(pack.Flip())
    both = animated(pack, scenes, views).args[0]
    each = [animated(pack, one, views).args[0] for one in scenes.split(1)]
    assert torch.equal(both, torch.cat(each))


def test_without_a_view_that_moves_the_picture_is_held(pack, scenes):
    film = animated(pack, scenes[:1], pack.chain(pack.Identity()), caption_size=0.0).args[0]
    assert torch.equal(film, scenes[:1].expand(HOLD, -1, -1, -1))


def test_the_shortest_film_is_one_frame_of_each(pack, scenes):
    film = animated(pack, scenes[:1], pack.chain(pack.Flip()), hold=0.0, transition=0.0, caption_size=0.0)
    assert torch.equal(film.args[0], torch.stack([scenes[0], scenes[0].flip(0)]))


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_can_be_shown_and_filmed(pack, scenes, temp, name):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    view = make(name, Parameters(mask=mask))
    views = pack.chain(view, titles=[name])
    seen, (film, _) = (
        reading(pack, scenes[:1], views),
        animated(pack, scenes[:1], views, caption_size=0.0).args,
    )
    expected = view.reading(scenes[:1].movedim(-1, 1)).movedim(1, -1)
    assert torch.equal(seen.args[0], expected)
    assert torch.equal(film[0], scenes[0]) and film.isfinite().all()
    if not torch.equal(expected[0], scenes[0]):  # colours are seen in the light that the picture is seen in
        assert len(film) == 2 * (HOLD + WAY)
    if name not in RECEDING:
        assert torch.equal(film[len(film) // 2], expected[0])
    frames, stops = sheet_frames(temp, player(seen)), player(seen)["stops"]
    error = (frames[stops[-1]] - film[len(film) // 2]).abs().mean()
    assert error < (0.15 if name == "pixel permutation" else 0.03)


def test_what_is_seen_from_afar_is_held_there(pack, scenes):
    view = make("low pass", Parameters())
    film = animated(pack, scenes[:1], pack.chain(view), caption_size=0.0).args[0]
    assert (film[HOLD + WAY, :16] == 0.5).all() and torch.equal(film[HOLD + WAY], film[HOLD + WAY + HOLD - 1])
    assert (film[HOLD + WAY] - film[HOLD + WAY - 1]).abs().mean() < 0.01  # no jump to another picture


def test_captions_stand_below_the_picture_and_change_with_it(pack, scenes):
    views = pack.chain(pack.Identity(), pack.Flip())
    film = animated(
        pack, scenes[:1], views, captions="a fox\n\u00c4pfel, \u044f\u0431\u043b\u043e\u043a\u0438"
    ).args[0]
    plain = animated(pack, scenes[:1], views, caption_size=0.0).args[0]
    assert film.shape[1] > 128 and film.shape[1] % 2 == 0 and torch.equal(film[:, :128], plain)
    below = film[:, 128:]
    assert torch.equal(below[0], below[HOLD - 1]) and below[0].max() > 0.8 < below[HOLD + WAY].max()
    assert not torch.equal(below[0], below[HOLD + WAY])
    assert below[HOLD + WAY // 2].max() < below[HOLD].max()


def test_captions_are_the_names_of_the_views_unless_written(pack, scenes):
    views = pack.chain(pack.Identity(), pack.Flip())
    named = animated(pack, scenes[:1], views).args[0]
    assert torch.equal(named, animated(pack, scenes[:1], views, captions="as it is\nupside down").args[0])
    nameless = pack.chain(pack.Identity(), pack.Flip(), titles=("", ""))
    assert torch.equal(
        animated(pack, scenes[:1], nameless).args[0],
        animated(pack, scenes[:1], nameless, captions="view 1\nview 2").args[0],
    )


def test_an_empty_line_leaves_a_view_without_caption(pack, scenes):
    views = pack.chain(pack.Identity(), pack.Flip())
    below = animated(pack, scenes[:1], views, captions="\nan apple").args[0][:, 128:]
    assert below[0].max() < 0.2 and below[HOLD + WAY].max() > 0.8


def test_the_film_becomes_a_video_even_of_pictures_with_odd_sides(host, pack, scenes, tmp_path):
    from comfy_extras.nodes_video import CreateVideo

    film, fps = animated(
        pack, scenes[:1, :63, :91], pack.chain(pack.Identity(), pack.Flip(), pack.Turn())
    ).args
    video = CreateVideo.execute(film, fps).args[0]
    video.save_to(str(tmp_path / "film.mp4"))
    from comfy_api.latest._input_impl.video_types import VideoFromFile

    read = VideoFromFile(str(tmp_path / "film.mp4")).get_components()
    assert read.images.shape == film.shape and read.frame_rate == 8
    assert (read.images - film).abs().mean() < 0.03


def test_the_film_becomes_an_animated_webp(host, pack, scenes, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(host.nodes.__file__).parent))  # as in a running host
    from comfy_extras.nodes_images import SaveAnimatedWEBP

    monkeypatch.setattr(host.folder_paths, "output_directory", str(tmp_path))
    film, fps = animated(pack, scenes[:1], pack.chain(pack.Identity(), pack.Flip())).args
    widgets = {"images": film, "filename_prefix": "film", "fps": fps, "quality": 80, "method": "fastest"}
    node = (
        SaveAnimatedWEBP.PREPARE_CLASS_CLONE(None)
        if hasattr(SaveAnimatedWEBP, "execute")
        else SaveAnimatedWEBP()
    )
    getattr(node, SaveAnimatedWEBP.FUNCTION)(lossless=False, **widgets)
    (file,) = tmp_path.glob("film*.webp")
    with Image.open(file) as webp:
        assert (webp.width, webp.height) == (128, film.shape[1])
        durations = []
        for i in range(webp.n_frames):
            webp.seek(i)
            webp.load()
            durations.append(webp.info["duration"])
    assert sum(durations) == len(film) * 125


@pytest.mark.parametrize("where", ["film", "player"])
def test_an_interrupt_stops_between_frames(pack, scenes, monkeypatch, where):
    import comfy.model_management

    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
    run = {"film": animated, "player": reading}[where]
    with pytest.raises(InterruptedError):
        run(pack, scenes[:1], pack.chain(pack.Flip()))
    assert len(calls) == 3


def test_the_progress_bar_counts_all_frames(pack, scenes, monkeypatch):
    import comfy.utils

    seen = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total))
    )
    film = animated(pack, scenes, pack.chain(pack.Flip())).args[0]
    counted = [value for value, _ in seen]  # newer hosts leave out what comes in too quick succession
    assert (counted[0], counted[-1]) == (1, len(film)) and counted == sorted(set(counted))
    assert {total for _, total in seen} == {len(film)}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"views": ()}, "views is empty.*Connect a View"),
        ({"views": None}, "views is empty.*Connect a View"),
        ({"image": torch.zeros(1, 1, 8, 3)}, "flip: the picture has only 1 row"),
        ({"image": torch.zeros(1, 8, 8, 1)}, "image has a single grey channel"),
        ({"captions": "a\nb"}, "captions has 2 lines for 1 views.*one line for each view"),
        ({"hold": 60.0, "fps": 120.0, "image": torch.zeros(1, 512, 512, 3)}, "at most 4 GiB.*Lower fps"),
    ],
)
def test_bad_input_is_a_sentence(pack, scenes, change, sentence):
    given = {"image": scenes[:1], "views": pack.chain(pack.Flip())} | change
    with pytest.raises(ValueError, match=sentence):
        animated(pack, given.pop("image"), given.pop("views"), **given)


def test_a_link_that_is_not_there_is_refused(pack, scenes):
    with pytest.raises(ValueError, match="index is 2, but the chain has 2 views.*Lower it to 1, or set -1"):
        reading(pack, scenes, pack.chain(pack.Identity(), pack.Flip()), 2)


def test_both_run_without_a_connected_output(pack):
    for node in pack.nodes.NODES:
        schema = node.GET_SCHEMA()
        assert schema.is_output_node and schema.node_id.startswith("GuidedSynthesis_")
