"""A painter's palette: the few colours that a picture is made of, and pictures painted with them.

k-means in CIE Lab, where distances are what the eye sees (Lloyd, Least squares quantization in PCM, 1982), on the
picture's colour histogram; started at colours that are frequent and far from those taken already, so no random numbers.
The differentiable form mixes the palette p_k by a softmax of squared distances:
    q(x) = sum_k w_k p_k,   w = softmax_k(-|x - p_k|^2 / T).
"""

from __future__ import annotations

import torch
from kornia.color import rgb_to_lab
from torch import Tensor

LEVELS = 32  # per channel of the histogram: colours closer than this are one colour
ROUNDS = 30  # of k-means, on at most a few thousand colours
SOFTNESS = 0.25  # T in squared distances to the next colour: there a colour still counts e^-4 = 2 %
SAME = 1e-6  # squared Lab distance below which two colours are one


def lab(picture: Tensor) -> Tensor:
    """Return CIE Lab (..., 3, H, W) of RGB `picture` (..., 3, H, W), which is clamped to [0, 1]."""
    return rgb_to_lab(picture.clamp(0, 1))


def find_palette(picture: Tensor, colours: int) -> Tensor:
    """Return at most `colours` RGB colours (k, 3) of `picture` (3, H, W) in [0, 1]: fewer if it has no more.

    The same picture gives the same palette on every device: the work is done on the CPU, in float64.
    """
    rgb, counts = _histogram(picture.detach().cpu().double().clamp(0, 1))
    points = _lab_of(rgb)
    centres = points[_seeds(points, counts, colours)]
    for _ in range(ROUNDS):
        members = (
            torch.nn.functional.one_hot(torch.cdist(points, centres).argmin(1), len(centres))
            * counts[:, None]
        )
        total = members.sum(0)[:, None]
        centres = torch.where(total > 0, members.T @ points / total.clamp(min=1), centres)
    members = members[:, total[:, 0] > 0]
    return (members.T @ rgb / members.sum(0)[:, None]).to(picture)


def nearest(picture: Tensor, palette: Tensor) -> Tensor:
    """Return for every pixel of `picture` (3, H, W) the index (H, W) of the colour of `palette` (k, 3) that it is."""
    pixels = lab(picture).flatten(1).T  # (H * W, 3)
    return torch.cdist(pixels, _lab_of(palette)).argmin(1).view(picture.shape[-2:])


def mix(pictures: Tensor, palette: Tensor) -> Tensor:
    """Return `pictures` (B, 3, H, W) in the colours of `palette` (k, 3), softly; differentiable, defined for any value.

    The temperature follows the palette: a quarter of the mean squared distance of its colours to their next. Distances
    are those of RGB: a gradient of Lab is unusable outside [0, 1], where a decoder's colours may well be.
    """
    logits = torch.einsum("bchw,kc->bkhw", 2 * pictures, palette) - palette.square().sum(1)[:, None, None]
    weights = (logits / _temperature(palette)).softmax(1)  # |x|^2 is common to all colours: it cancels
    return torch.einsum("bkhw,kc->bchw", weights, palette)


def _temperature(palette: Tensor) -> Tensor:
    if len(palette) == 1:
        return palette.new_ones(())
    apart = (palette[:, None] - palette[None]).square().sum(-1)  # (k, k)
    apart = apart + torch.diag(apart.new_full((len(palette),), torch.inf))
    return SOFTNESS * apart.amin(1).mean()


def _lab_of(colours: Tensor) -> Tensor:
    return lab(colours.T[:, :, None])[..., 0].T  # (k, 3)


def _histogram(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean colours (n, 3) of the occupied cells of the RGB cube, and how many pixels each has (n,)."""
    pixels = picture.flatten(1).T
    cell = (pixels * (LEVELS - 1)).round().long() @ torch.tensor([LEVELS**2, LEVELS, 1])
    _, index, counts = cell.unique(return_inverse=True, return_counts=True)
    sums = pixels.new_zeros(len(counts), 3).index_add(0, index, pixels)
    return sums / counts[:, None], counts.double()


def _seeds(points: Tensor, counts: Tensor, colours: int) -> list[int]:
    """Return the indices of up to `colours` of `points` (n, 3): frequent ones, far from those taken before."""
    taken = [int(counts.argmax())]
    gap = torch.full_like(counts, torch.inf)
    while len(taken) < colours:
        gap = gap.minimum((points - points[taken[-1]]).square().sum(1))
        if gap.max() < SAME:
            break
        taken.append(int((gap * counts**0.25).argmax()))
    return taken
