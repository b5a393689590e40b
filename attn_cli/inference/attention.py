"""What a model attended to, in numbers: how much of its masks is zero, whether errors come from looking elsewhere, how
well the last region fits the object, and at which scale it looked.

Legend: n images, B images at a time, N glimpses, H × W image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attn_cli.inference.monte_carlo import evaluation_noise
from attn_cli.inference.regions import clipped, last_regions, overlap
from attn_cli.models.model import GlimpseModel
from attn_cli.models.rollout import rollout
from attn_cli.models.trace import Trace

AT_A_TIME = 250  # images: what was seen at every glimpse is kept


@dataclass(frozen=True)
class Attention:
    """Shares in %."""

    mask_zeros: tuple[float, ...] | None  # of the mask's entries, for each glimpse; None without masks
    mean_mask: tuple[float, ...] | None  # brightness of the mask, for each glimpse (a factor, no share)
    mislocalised: float | None  # of the errors: no glimpse was centred on the object; None without boxes
    iou: float | None = None  # mean intersection over union of the last region and the box, 0 to 1; None without boxes
    whole_image_iou: float | None = None  # that of the whole image and the box
    mean_magnification: tuple[float, ...] | None = None  # for each glimpse, of those that use it; pixels a cell


@torch.no_grad()
def attention(
    model: GlimpseModel, images_nCHW: Tensor, labels_n: Tensor, boxes_n4: Tensor | None = None, seed: int = 0
) -> Attention:
    """Along the mean-location path of a model with one answer. `boxes` are of the objects, x0, y0, x1, y1 in pixels, x1
    and y1 exclusive.

    An object counts as found if the centre of any glimpse lies in its box; Semeniuta & Barth, section IV.A, do not say
    when they call an error one of localisation.
    """
    was_training, n = model.training, len(images_nCHW)
    model.eval()
    noise = evaluation_noise(seed, 0, 0, n, model.steps, model.noises)
    zeros, sums = torch.zeros(model.steps), torch.zeros(model.steps)
    errors = elsewhere = 0
    overlaps: list[Tensor] = []
    magnified, looked = torch.zeros(model.steps), torch.zeros(model.steps)
    for low in range(0, n, AT_A_TIME):
        part = slice(low, low + AT_A_TIME)
        images = images_nCHW[part]
        logits, trace = rollout(model, images, noise[None, part].to(images.device), greedy=True, record=True)
        if trace.masks is not None:
            masks_BNHW = trace.masks[0]
            zeros += (masks_BNHW == 0).float().mean((2, 3)).sum(0).cpu()
            sums += masks_BNHW.mean((2, 3)).sum(0).cpu()
        if trace.magnifications is not None:
            used = used_glimpses(trace).float()
            magnified += (trace.magnifications[0].float() * used).sum(0).cpu()
            looked += used.sum(0).cpu()
        if boxes_n4 is not None:
            wrong = logits[0].argmax(-1) != labels_n[part]
            errors += int(wrong.sum())
            height, width = images.shape[-2:]
            elsewhere += int((wrong & ~found(trace, boxes_n4[part], height, width)).sum())
            true = boxes_n4[part].to(images.device)
            whole = true.new_tensor([[0, 0, width, height]]).expand_as(true)
            regions = clipped(last_regions(trace), height, width)
            overlaps.append(torch.stack([overlap(regions, true), overlap(whole, true)], 1).cpu())
    model.train(was_training)
    iou, whole_image_iou = torch.cat(overlaps).mean(0).tolist() if overlaps else (None, None)
    return Attention(
        tuple((100 * zeros / n).tolist()) if model.masks else None,
        tuple((sums / n).tolist()) if model.masks else None,
        100 * elsewhere / max(errors, 1) if boxes_n4 is not None else None,
        iou,
        whole_image_iou,
        tuple((magnified / looked)[looked > 0].tolist()) if model.zooms else None,
    )


def found(trace: Trace, boxes_B4: Tensor, height: int, width: int) -> Tensor:
    """Whether the centre of any glimpse that the first path uses lies in the box, bool (B,)."""
    size = trace.locations.new_tensor([width, height])
    places_BN2 = (trace.locations[0] + 1) / 2 * size
    box = boxes_B4.to(places_BN2.device)[:, None]
    inside_BN = ((places_BN2 >= box[..., :2]) & (places_BN2 < box[..., 2:])).all(-1)
    return (inside_BN & used_glimpses(trace)).any(1)


def used_glimpses(trace: Trace) -> Tensor:
    """Which glimpses the first path uses, bool (B, N): all, or of a model that stops by itself those until it does."""
    _, B, N, _ = trace.locations.shape
    number = torch.arange(N, device=trace.locations.device).expand(B, N)
    return number < (N if trace.glimpses is None else trace.glimpses[0][:, None])
