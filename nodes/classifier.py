"""Load Classifier: a network that names what is in a picture, for nodes that ask where it sees that."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from .host import classifier_menu
from .host.classifier_weights import ARCHITECTURES
from .host.classifiers import Classifier, load_classifier
from .host.schema import tolerant
from .host.sockets import ClassifierSocket

FROM_FILE = "from the file"


class LoadClassifier(io.ComfyNode):
    """A file in models/classifiers, or torchvision's own ResNet -> CLASSIFIER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_LoadClassifier",
            display_name="Load Classifier",
            category="guided synthesis/noise",
            description=(
                "Loads a network that names what is in a picture, and shows its labels: a file in models/classifiers, "
                "or a ResNet for the 1000 categories of ImageNet, which is downloaded once. For Saliency Noise."
            ),
            search_aliases=["classifier", "resnet", "imagenet", "labels", "torchvision", "saliency"],
            inputs=[
                io.Combo.Input(
                    "classifier",
                    options=classifier_menu.listed(),
                    tooltip=(
                        "A file in the folder models/classifiers (.safetensors, or .pth and .pt of torchvision), or a "
                        "network that torchvision downloads when this node runs for the first time (45 and 98 MB)."
                    ),
                ),
                io.Combo.Input(
                    "architecture",
                    options=[FROM_FILE, *ARCHITECTURES],
                    default=FROM_FILE,
                    tooltip=(
                        "Which network of torchvision the file holds. A safetensors file can say it itself; of any "
                        "other choose it here."
                    ),
                ),
            ],
            outputs=[
                ClassifierSocket.Output(
                    display_name="classifier",
                    tooltip="The network, its labels, and how it wants to see pictures.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, classifier: str | None = None, architecture: str | None = None
    ) -> str | float:
        """Tell the host when the file has changed; a name that is not known yet (a linked input) may have."""
        return float("nan") if classifier is None else classifier_menu.fingerprint(classifier)

    @classmethod
    def execute(cls, classifier, architecture) -> io.NodeOutput:
        """Load it, and show its labels."""
        loaded = load_classifier(*_source(classifier, architecture))
        return io.NodeOutput(loaded, ui=ui.PreviewText(_described(loaded)))


def _source(classifier: str, architecture: str) -> tuple[Path | None, str | None]:
    """Return the file and the architecture to load; None for a download, and for what the file says itself."""
    file, wanted = classifier_menu.chosen(classifier), None if architecture == FROM_FILE else architecture
    if file is not None:
        return file, wanted
    known = classifier_menu.DOWNLOADS[classifier]
    if wanted not in (None, known):
        raise ValueError(
            f"architecture is {wanted}, but {classifier!r} is a {known}. Set architecture to {FROM_FILE!r}, or choose "
            f"a file that holds a {wanted} in classifier."
        )
    return None, known


def _described(classifier: Classifier) -> str:
    labels = ", ".join(classifier.labels)
    return f"{classifier.name}, {classifier.size} px, {len(classifier.labels)} labels:\n{labels}"


NODES = [LoadClassifier]
