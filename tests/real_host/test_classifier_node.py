"""Load Classifier on the real host: what files it takes, what it says of others, and how its network is managed."""

from __future__ import annotations

import gc
import json
import os
import shutil
import urllib.error
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from imagenet.classifiers import efficientnet_lite0, squeezenet_file
from imagenet.photos import chelsea
from tiny_sd.resnet import METADATA, WEIGHTS, slim_resnet18

CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat", "lynx"}
SMALLEST = (  # of each kind
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "mnasnet0_5", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1"),
)
DOWNLOAD = "resnet18 (torchvision, downloads)"


@pytest.fixture
def pack(host, tmp_path, monkeypatch):
    """The node's modules, with an empty `models/classifiers` and an empty torch cache of their own."""
    from guided_synthesis.nodes import classifier
    from guided_synthesis.nodes.host import classifier_menu, classifier_weights, classifiers, gradients

    folder = tmp_path / "models" / "classifiers"
    folder.mkdir(parents=True)
    monkeypatch.setitem(host.folder_paths.folder_names_and_paths, "classifiers", ([str(folder)], {""}))
    monkeypatch.setattr(host.folder_paths, "models_dir", str(folder.parent))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return SimpleNamespace(
        node=classifier.LoadClassifier,
        menu=classifier_menu,
        weights=classifier_weights,
        classifiers=classifiers,
        gradients=gradients,
        folder=folder,
    )


@pytest.fixture
def demo(pack) -> Path:
    """The demo ResNet as a file in `models/classifiers`."""
    return Path(shutil.copy(WEIGHTS, pack.folder / "demo.safetensors"))


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """The photograph of a cat: (1, 3, 300, 451) in [0, 1]."""
    return torch.from_numpy(chelsea()).movedim(-1, 0)[None].float() / 255


def _load(pack, file: str, architecture: str = "from the file"):
    with torch.inference_mode():
        return pack.node.execute(classifier=file, architecture=architecture).args[0]


def _written(pack, metadata=METADATA, network=None, name="given.safetensors", **changes) -> str:
    """Write a random slim ResNet18 (or `network`), with some tensors changed, and return its name in the list."""
    state = {**(network or slim_resnet18()).state_dict(), **changes}
    save_file({key: value for key, value in state.items() if value is not None}, pack.folder / name, metadata)
    return name


def test_the_logits_are_those_of_torchvision(pack, demo, photo):
    loaded = _load(pack, "demo.safetensors")
    plain = slim_resnet18().eval()
    plain.load_state_dict({key: value.float() for key, value in load_file(WEIGHTS).items()}, strict=False)
    small = torchvision.transforms.functional.resize(photo, [128], antialias=True)
    expected = plain((small - 0.5) / 0.5)
    with torch.inference_mode(), loaded.opened() as network:
        torch.testing.assert_close(network(loaded.prepare(photo)), expected.detach(), rtol=0, atol=1e-5)


def test_it_has_the_labels_and_the_eyes_that_the_file_says(pack, demo):
    loaded = _load(pack, "demo.safetensors")
    assert (loaded.name, loaded.size, loaded.mean, loaded.std) == ("demo", 128, (0.5,) * 3, (0.5,) * 3)
    assert loaded.labels == tuple(json.loads(METADATA["labels"])) and len(loaded.labels) == 32
    assert all(weight.dtype == torch.float32 for weight in loaded.patcher.model.parameters())
    assert not any(weight.requires_grad for weight in loaded.patcher.model.parameters())
    assert not any(module.training for module in loaded.patcher.model.modules())


def test_the_node_shows_the_labels(pack, demo):
    (text,) = pack.node.execute(classifier="demo.safetensors", architecture="from the file").ui.as_dict()[
        "text"
    ]
    assert text.startswith("demo, 128 px, 32 labels:\nfox, cat, ")


@pytest.mark.parametrize("make", ["squeezenet", "efficientnet_lite0"])
def test_real_networks_call_a_cat_a_cat(pack, photo, make):
    if make == "squeezenet":
        shutil.copy(squeezenet_file(), pack.folder)
    loaded = _load(pack, squeezenet_file().name) if make == "squeezenet" else efficientnet_lite0()
    with torch.inference_mode():
        found = loaded.predicted(torch.cat([photo, photo.flip(-1)]), 3)
    assert {label for picture in found for label, _ in picture} <= CATS
    assert all(0.4 < picture[0][1] < 1 and picture[0][1] >= picture[1][1] for picture in found)
    assert len(loaded.labels) == 1000 and loaded.labels[281] == "tabby"


def test_all_of_a_thousand_labels_are_found(pack):
    labels = pack.classifiers.IMAGENET_LABELS
    loaded = pack.classifiers.Classifier(None, "imagenet", labels, 224, (0.0,) * 3, (1.0,) * 3)
    assert [loaded.index(label) for label in labels] == list(range(1000))
    differ = [i for i, label in enumerate(labels) if loaded.index(label.upper().replace(" ", "_")) != i]
    assert [(i, labels[i]) for i in differ] == [(474, "cardigan")]  # 264, Cardigan, is a dog


def test_a_label_is_found_by_name_or_number_however_it_is_written(pack):
    labels = ("tiger cat", "7", "pig", "tench")
    loaded = pack.classifiers.Classifier(None, "few", labels, 224, (0.0,) * 3, (1.0,) * 3)
    assert [loaded.index(label) for label in ("Tiger_Cat", " tigercat ", "tiger cat")] == [0, 0, 0]
    assert [loaded.index(label) for label in ("7", "2", "0", "pig")] == [1, 2, 0, 2]
    for wrong in ("4", "-1", "", "1.5"):
        with pytest.raises(
            ValueError, match=f"few has no label '{wrong}'. Write one of its 4 labels.*0 to 3"
        ):
            loaded.index(wrong)


@pytest.mark.parametrize(
    ("wrong", "offered"),
    [
        ("cat", "'tiger cat', 'Persian cat', 'Siamese cat', 'Egyptian cat'"),
        ("labrador", "'Labrador retriever'"),
    ],
)
def test_the_nearest_labels_are_offered_for_an_unknown_one(pack, wrong, offered):
    labels = pack.classifiers.IMAGENET_LABELS
    loaded = pack.classifiers.Classifier(None, "imagenet", labels, 224, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match=f"no label '{wrong}'. The nearest are {offered}"):
        loaded.index(wrong)


@pytest.mark.parametrize(("height", "width", "seen"), [(300, 451, (224, 336)), (90, 60, (336, 224))])
def test_it_sees_the_whole_picture_in_its_own_size(pack, height, width, seen):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    loaded = pack.classifiers.Classifier(None, "any", ("a",), 224, mean, std)
    colour = torch.tensor([0.6, 0.7, 0.8]).view(3, 1, 1).expand(2, 3, height, width)
    found = loaded.prepare(colour)
    assert found.shape == (2, 3, *seen)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1).expand_as(found))


def test_what_it_sees_is_differentiable_twice(pack):
    loaded = pack.classifiers.Classifier(None, "any", ("a",), 5, (0.4,) * 3, (0.5,) * 3)
    picture = torch.rand(1, 3, 7, 6, dtype=torch.float64, requires_grad=True)

    def squared(x):
        return loaded.prepare(x).square()

    assert torch.autograd.gradcheck(squared, picture)
    assert torch.autograd.gradgradcheck(squared, picture)


def test_probabilities_of_all_labels_sum_to_one(pack, demo, photo):
    (found,) = _load(pack, "demo.safetensors").predicted(photo.half(), 100)
    assert len(found) == 32 and sum(chance for _, chance in found) == pytest.approx(1)


def test_gradients_flow_through_the_network_inside_inference_mode(pack, demo, photo):
    loaded = _load(pack, "demo.safetensors")
    with torch.inference_mode(), loaded.opened() as network, pack.gradients.differentiable():
        leaf = photo.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(loaded.prepare(leaf))[0, 1], leaf)
    assert gradient.isfinite().all() and gradient.abs().amax() > 0


def test_the_host_manages_the_network_and_frees_it(pack, demo, photo, host, monkeypatch):
    loaded, asked = _load(pack, "demo.safetensors"), []
    manager = host.comfy.model_management
    original = manager.load_models_gpu

    def load_models_gpu(models, *args, **keywords):
        asked.append((models[0], keywords["memory_required"], keywords["force_full_load"]))
        return original(models, *args, **keywords)

    monkeypatch.setattr(manager, "load_models_gpu", load_models_gpu)
    loaded.predicted(photo)
    with loaded.opened(12345.0) as network:
        assert pack.gradients.is_loaded(loaded.patcher)
        assert next(network.parameters()).device == loaded.patcher.load_device
    assert [model for model, _, _ in asked] == [loaded.patcher] * 2 and all(whole for _, _, whole in asked)
    assert asked[0][1] >= 4 * 3 * 128 * 192 and asked[1][1] == 12345.0
    asked.clear()
    kept = weakref.ref(network)
    del loaded, network
    gc.collect()
    assert kept() is None


def test_an_interrupt_stops_a_batch(pack, demo, photo, host):
    loaded = _load(pack, "demo.safetensors")
    host.nodes.interrupt_processing(True)
    with pytest.raises(host.comfy.model_management.InterruptProcessingException):
        loaded.predicted(photo)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_weights_become_float32(pack, dtype):
    state = {k: v.to(dtype) for k, v in slim_resnet18().state_dict().items() if v.is_floating_point()}
    save_file(state, pack.folder / "other.safetensors", METADATA)
    network = _load(pack, "other.safetensors").patcher.model
    assert {value.dtype for key, value in network.state_dict().items() if key in state} == {torch.float32}
    torch.testing.assert_close(network.conv1.weight.detach(), state["conv1.weight"].float())


@pytest.mark.parametrize("ending", ["pth", "pt", "safetensors"])
def test_a_file_without_metadata_is_taken_for_imagenets(pack, ending):
    network = torchvision.models.mobilenet_v3_small(weights=None)
    if ending == "safetensors":
        save_file(network.state_dict(), pack.folder / f"mobile.{ending}")
    else:
        torch.save(network.state_dict(), pack.folder / f"mobile.{ending}")
    loaded = _load(pack, f"mobile.{ending}", "mobilenet_v3_small")
    assert (loaded.size, loaded.mean, loaded.std) == (224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert loaded.labels == pack.classifiers.IMAGENET_LABELS


def test_other_numbers_of_labels_without_names_are_numbers(pack):
    name = _written(pack, {"architecture": "resnet18"})
    loaded = _load(pack, name)
    assert loaded.labels == tuple(map(str, range(32))) and loaded.index("31") == 31


def test_the_architecture_chosen_in_the_node_counts_more_than_the_files(pack):
    name = _written(pack, METADATA | {"architecture": "vgg16"})
    assert len(_load(pack, name, "resnet18").labels) == 32
    name = _written(pack, METADATA | {"architecture": "mine"})
    assert len(_load(pack, name, "resnet18").labels) == 32


def test_labels_that_come_twice_can_be_told_apart(pack):
    labels = json.dumps(["crane"] * 32)
    assert _load(pack, _written(pack, METADATA | {"labels": labels})).labels[:2] == ("crane", "crane (1)")


@pytest.mark.parametrize("name", SMALLEST)
def test_each_family_loads_what_torchvision_saves(pack, name):
    network = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    loaded = _load(pack, _written(pack, None, network), name)
    picture = torch.rand(1, 3, 64, 80)
    assert name in pack.node.define_schema().inputs[1].options and len(loaded.labels) == 5
    with torch.no_grad(), loaded.opened() as found:
        torch.testing.assert_close(found(picture), network(picture))


def test_the_older_names_in_torchvisions_densenet_files_are_known(pack):
    state = torchvision.models.densenet121(weights=None, num_classes=3).state_dict()
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value for key, value in state.items()
    }
    assert old.keys() != state.keys()
    save_file(old, pack.folder / "old.safetensors")
    assert len(_load(pack, "old.safetensors", "densenet121").labels) == 3


def test_the_menu_lists_files_first_and_needs_none(pack):
    downloads = [DOWNLOAD, "resnet50 (torchvision, downloads)"]
    assert pack.menu.listed() == downloads
    (pack.folder / "more").mkdir()
    for name in ("b.pth", "a.safetensors", "more/c.PT", "notes.txt", "d.ckpt"):
        (pack.folder / name).touch()
    assert pack.menu.listed() == ["a.safetensors", "b.pth", os.path.join("more", "c.PT"), *downloads]
    assert pack.node.define_schema().inputs[0].options == pack.menu.listed()


def test_a_folder_that_does_not_exist_leaves_the_downloads(pack):
    pack.folder.rmdir()
    assert len(pack.menu.listed()) == 2 and len(pack.node.define_schema().inputs[0].options) == 2


def test_nothing_is_downloaded_before_the_node_runs(pack, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: pytest.fail("a download began"))
    pack.node.define_schema()
    assert pack.node.fingerprint_inputs(classifier=DOWNLOAD, architecture="from the file") == DOWNLOAD


@pytest.mark.parametrize("architecture", ["from the file", "resnet18"])
def test_the_download_is_torchvisions_file_and_comes_once(pack, monkeypatch, architecture):
    asked = []

    def download(url, file, start_of_hash):
        asked.append((url.rsplit("/", 1)[1], start_of_hash))
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        loaded = _load(pack, DOWNLOAD, architecture)
        assert (loaded.name, loaded.size, len(loaded.labels)) == ("resnet18", 224, 1000)
    assert asked == [("resnet18-f37072fd.pth", "f37072fd")]


def test_offline_it_says_what_to_do(pack, monkeypatch):
    def offline(*_):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    sentence = r"torchvision's resnet18 needs resnet18-.*\.pth.*no route to host.*models/classifiers"
    with pytest.raises(ValueError, match=sentence):
        _load(pack, DOWNLOAD)


def test_a_download_under_another_name_is_refused(pack):
    with pytest.raises(
        ValueError, match="architecture is vgg16, but 'resnet18.*Set architecture to 'from the file'"
    ):
        _load(pack, DOWNLOAD, "vgg16")


def test_a_changed_file_is_loaded_again(pack, demo):
    first = pack.node.fingerprint_inputs(classifier="demo.safetensors", architecture="from the file")
    assert first == pack.node.fingerprint_inputs(classifier="demo.safetensors", architecture="from the file")
    os.utime(demo, ns=(1, 1))
    assert first != pack.node.fingerprint_inputs(classifier="demo.safetensors", architecture="from the file")
    unknown = pack.node.fingerprint_inputs(classifier=None, architecture=None)
    assert unknown != unknown  # not a number


def test_the_file_may_be_replaced_while_it_is_in_use(pack, demo, photo):
    loaded = _load(pack, "demo.safetensors")
    before = loaded.predicted(photo)
    with open(demo, "r+b") as file:
        file.seek(-(2**20), os.SEEK_END)
        file.write(bytes(2**20))
    assert loaded.predicted(photo) == before


@pytest.mark.parametrize("name", ["gone.safetensors", "../classifiers/demo.safetensors", "notes.txt"])
def test_a_name_that_is_not_in_the_list_is_refused(pack, demo, name):
    (pack.folder / "notes.txt").touch()
    with pytest.raises(ValueError, match="no file .* in the folder models/classifiers"):
        _load(pack, name)


def test_a_file_that_says_nothing_asks_for_its_architecture(pack):
    with pytest.raises(
        ValueError, match="given.safetensors does not say what network.*choose it in architecture"
    ):
        _load(pack, _written(pack, None))
    torch.save(slim_resnet18().state_dict(), pack.folder / "plain.pth")
    with pytest.raises(ValueError, match="plain.pth does not say what network"):
        _load(pack, "plain.pth")


def test_an_unknown_architecture_in_the_file_is_named(pack):
    name = _written(pack, METADATA | {"architecture": "vit_b_16"})
    with pytest.raises(ValueError, match="given.safetensors says that it is 'vit_b_16', which is no network"):
        _load(pack, name)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fc.weight": None}, "not torchvision's resnet18: it lacks fc.weight. Choose"),
        ({"head.weight": torch.zeros(1)}, "not torchvision's resnet18: it has head.weight. Choose"),
        ({"fc.weight": None, "head.weight": torch.zeros(1)}, "it lacks fc.weight and has head.weight"),
    ],
)
def test_missing_and_unexpected_tensors_are_named(pack, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        _load(pack, _written(pack, **changes))


def test_of_many_missing_tensors_some_are_named(pack):
    with pytest.raises(
        ValueError, match=r"lacks features.0.weight, .*and \d+ more and has bn1.bias, .*and \d+ more"
    ):
        _load(pack, _written(pack), "vgg16")


def test_the_counters_of_batchnorm_may_be_missing(pack):
    state = {k: v for k, v in slim_resnet18().state_dict().items() if "num_batches" not in k}
    save_file(state, pack.folder / "bare.safetensors", METADATA)
    assert len(_load(pack, "bare.safetensors").labels) == 32


@pytest.mark.parametrize(
    "changes",
    [{"fc.weight": torch.zeros(32, 7)}, {"conv1.weight": torch.zeros(16)}, {"bn1.weight": torch.zeros(3)}],
)
def test_shapes_that_do_not_fit_are_one_sentence(pack, changes):
    with pytest.raises(ValueError, match="given.safetensors does not work as resnet18 on a picture of 64 px"):
        _load(pack, _written(pack, **changes))


def test_weights_that_are_not_numbers_are_one_sentence(pack):
    with pytest.raises(ValueError, match="gives no finite numbers as resnet18"):
        _load(pack, _written(pack, **{"fc.bias": torch.full((32,), torch.nan)}))


@pytest.mark.parametrize(
    ("key", "text", "must"),
    [
        ("labels", '["fox", "cat"', "labels must be a JSON list of strings"),
        ("labels", '{"fox": 1}', "labels must be a JSON list of strings"),
        ("labels", "[1, 2]", "labels must be a JSON list of strings"),
        ("labels", '["fox", " "]', "labels must be a JSON list of strings, none of them empty"),
        ("size", "large", "size must be a whole number of px from 16 to 2048, not 'large'"),
        ("size", "0", "size must be a whole number"),
        ("mean", "[0.5, 0.5]", "mean must be a JSON list of three numbers"),
        ("mean", "0.5", "mean must be a JSON list of three numbers"),
        ("mean", "[NaN, 0, 0]", "mean must be a JSON list of three numbers"),
        ("std", "[0.5, 0.5, 0]", "std must be a JSON list of three numbers above 0"),
    ],
)
def test_malformed_metadata_is_named(pack, key, text, must):
    with pytest.raises(ValueError, match=f"The metadata of given.safetensors is wrong: {must}"):
        _load(pack, _written(pack, METADATA | {key: text}))


def test_a_wrong_number_of_labels_is_named(pack):
    name = _written(pack, METADATA | {"labels": '["fox", "cat"]'})
    with pytest.raises(ValueError, match="given.safetensors has 2 labels for a network that tells 32 apart"):
        _load(pack, name)


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\xff" * 64])
def test_a_broken_file_is_one_sentence(pack, name, content):
    (pack.folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged, or no"):
        _load(pack, name, "resnet18")


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"epoch": 3, "fc.weight": torch.zeros(1)}, torch.zeros(2)]
)
def test_a_file_of_something_else_is_one_sentence(pack, content):
    torch.save(content, pack.folder / "else.pth")
    with pytest.raises(ValueError, match="else.pth is damaged, or no file of weights"):
        _load(pack, "else.pth", "resnet18")


def test_a_pickled_network_does_not_run(pack, capsys):
    class Evil:
        def __reduce__(self):
            return print, ("this must never be printed",)

    torch.save({"fc.weight": Evil()}, pack.folder / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth is damaged, or no file of weights"):
        _load(pack, "evil.pth", "resnet18")
    assert "never be printed" not in capsys.readouterr().out
