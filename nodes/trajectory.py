"""What an inversion found, to look at and to keep: Trajectory View, Save Trajectory, Load Trajectory."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..guidance.trajectory_io import described
from .host import trajectory_files
from .host.filmstrip import filmstrip
from .host.plots import curve
from .host.schema import tolerant
from .host.sockets import TrajectorySocket

CATEGORY = "guided synthesis/inversion"


class TrajectoryView(io.ComfyNode):
    """Shows the steps of an inversion as pictures, and how well the sampler will follow them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_TrajectoryView",
            display_name="Trajectory View",
            category=CATEGORY,
            description=(
                "Shows the path of an inversion: a strip of decoded steps from the noise to the picture, and a plot "
                "of the residual of each step."
            ),
            search_aliases=["inversion", "trajectory", "residual", "unsampling", "steps"],
            inputs=[
                TrajectorySocket.Input("trajectory", tooltip="From the inversion, or from Load Trajectory."),
                io.Model.Input(
                    "model",
                    tooltip="The model that the picture was inverted with: it tells the scale of its latents.",
                ),
                io.Vae.Input("vae", tooltip="The VAE of this model: it turns the latents into pictures."),
                io.Int.Input(
                    "frames",
                    default=6,
                    min=2,
                    max=100,
                    tooltip=(
                        "How many steps are shown, evenly spaced from the noise to the picture; at most all that there "
                        "are. Each takes a decode of the VAE."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="strip",
                    tooltip="For each picture a row of steps, the noise on the left, the picture on the right.",
                ),
                io.Image.Output(
                    display_name="residuals",
                    tooltip=(
                        "For each picture a line: by how much the sampler's step misses the next latent. Lower is "
                        "better; 0 is exact."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(cls, trajectory, model, vae, frames) -> io.NodeOutput:
        """Decode the strip and draw the plot."""
        strip = filmstrip(trajectory, model, vae, frames)
        of = trajectory.method if trajectory.null_text is None else "null-text"
        plot = curve(trajectory.residuals, f"Residuals of {of}", "root mean square", "step")
        return io.NodeOutput(strip, plot)


class SaveTrajectory(io.ComfyNode):
    """Writes a trajectory to a safetensors file in the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_SaveTrajectory",
            display_name="Save Trajectory",
            category=CATEGORY,
            description=(
                "Keeps an inverted picture for later: with Load Trajectory it can be edited again without inverting "
                "it. Writes a safetensors file to the output folder."
            ),
            search_aliases=["inversion", "trajectory", "save", "keep", "null-text"],
            inputs=[
                TrajectorySocket.Input("trajectory", tooltip="From the inversion or from Null-Text."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{trajectory_files.FOLDER}/trajectory",
                    tooltip=(
                        "Folder and name inside of the output folder; a number is added. Load Trajectory lists the "
                        "folder trajectories and those in it. %year%, %month%, %day% and so on become the date."
                    ),
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory, filename_prefix) -> io.NodeOutput:
        """Write the file and show its name and what it holds."""
        name = trajectory_files.save(trajectory, filename_prefix, cls.hidden)
        return io.NodeOutput(ui=ui.PreviewText(f"{name}\n{described(trajectory)}"))


class LoadTrajectory(io.ComfyNode):
    """Reads a trajectory from a safetensors file in the input or the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_LoadTrajectory",
            display_name="Load Trajectory",
            category=CATEGORY,
            description=(
                "Loads an inverted picture saved by Save Trajectory. Use it with the model and the SIGMAS that it "
                "was made with; the nodes that follow it say so if they differ."
            ),
            search_aliases=["inversion", "trajectory", "load", "null-text"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=trajectory_files.listed(),
                    tooltip=(
                        "A .safetensors file of the input folder, or one of output/trajectories (marked [output]). "
                        "Press R after saving a new one."
                    ),
                ),
            ],
            outputs=[
                TrajectorySocket.Output(
                    display_name="trajectory",
                    tooltip="As the inversion gave it, to the bit, with the null-text if it had one.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """Refuse a file that is missing or elsewhere before anything runs."""
        return True if file is None else trajectory_files.problem(file) or True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> str | float:
        """Tell the host when the file has changed; a name that is not known yet (a linked input) may have."""
        return float("nan") if file is None else trajectory_files.fingerprint(file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        """Read the file and show what it holds."""
        trajectory = trajectory_files.load(file)
        return io.NodeOutput(trajectory, ui=ui.PreviewText(described(trajectory)))


NODES = [TrajectoryView, SaveTrajectory, LoadTrajectory]
