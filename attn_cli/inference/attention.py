"""What a model attended to, in numbers: how much of its masks is zero, whether errors come from looking elsewhere, how
well the last region fits the object, at which scale the model looked, and how often at an object that moves.

Legend: n images or videos, B of them at a time, N glimpses, of videos one a frame, H × W image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attn_cli.data.splits import Pictures
from attn_cli.inference.monte_carlo import evaluation_noise
from attn_cli.inference.regions import clipped, last_regions, overlap
from attn_cli.models.model import GlimpseModel
from attn_cli.models.rollout import moving, rollout
from attn_cli.models.trace import Trace

AT_A_TIME = 250  # images: what was seen at every glimpse is kept


@dataclass(frozen=True)
class Gaze:
    """Shares in %: of the frames looked at, those where the centre of the glimpse lies in the object's box there."""

    on_target: float
    by_frame: tuple[float | None, ...]  # None where no gaze is left
    centre: float  # of a gaze that stays in the middle
    random: float  # of one that is anywhere, every place equally likely


@dataclass(frozen=True)
class Attention:
    """Shares in %."""

    mask_zeros: tuple[float, ...] | None  # of the mask's entries, for each glimpse; None without masks
    mean_mask: tuple[float, ...] | None  # brightness of the mask, for each glimpse (a factor, no share)
    mislocalised: float | None  # of the errors: no glimpse was centred on the object; None without boxes
    gaze: Gaze | None = None  # of videos with boxes
    iou: float | None = None  # mean intersection over union of the last region and the box, 0 to 1; None without boxes
    whole_image_iou: float | None = None  # that of the whole image and the box
    mean_magnification: tuple[float, ...] | None = None  # for each glimpse, of those that use it; pixels a cell


@torch.no_grad()
def attention(
    model: GlimpseModel, images_nCHW: Pictures, labels_n: Tensor, boxes_n4: Tensor | None = None, seed: int = 0
) -> Attention:
    """Along the mean-location path of a model with one answer. `boxes` are of the objects, x0, y0, x1, y1 in pixels, x1
    and y1 exclusive; of videos (n, N, 4), and the last region is compared with the box of its frame.

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
    hits: list[Tensor] = []  # (B, N) of videos, 1 where the gaze is on the object, NaN where it is not used
    for low in range(0, n, AT_A_TIME):
        part = slice(low, low + AT_A_TIME)
        images = images_nCHW[part]
        logits, trace = rollout(model, images, noise[None, part].to(images.device), greedy=True, record=True)
        if trace.masks is not None:
            masks_BNHW = trace.masks[0]
            zeros += (masks_BNHW == 0).float().mean((2, 3)).sum(0).cpu()
            sums += masks_BNHW.mean((2, 3)).sum(0).cpu()
        used_BN = used_glimpses(trace)
        if trace.magnifications is not None:
            magnified += (trace.magnifications[0].float() * used_BN).sum(0).cpu()
            looked += used_BN.sum(0).cpu()
        if boxes_n4 is not None:
            wrong = logits[0].argmax(-1) != labels_n[part]
            errors += int(wrong.sum())
            height, width = images.shape[-2:]
            true = boxes_n4[part].to(images.device)
            inside_BN = on_object(trace, true, height, width) & used_BN
            elsewhere += int((wrong & ~inside_BN.any(1)).sum())
            if moving(images):
                hits.append(torch.where(used_BN, inside_BN.float(), torch.nan).cpu())
                true = true[torch.arange(len(true), device=true.device), used_BN.sum(1) - 1]
            whole = true.new_tensor([[0, 0, width, height]]).expand_as(true)
            regions = clipped(last_regions(trace), height, width)
            overlaps.append(torch.stack([overlap(regions, true), overlap(whole, true)], 1).cpu())
    model.train(was_training)
    iou, whole_image_iou = torch.cat(overlaps).mean(0).tolist() if overlaps else (None, None)
    return Attention(
        mask_zeros=tuple((100 * zeros / n).tolist()) if model.masks else None,
        mean_mask=tuple((sums / n).tolist()) if model.masks else None,
        mislocalised=100 * elsewhere / max(errors, 1) if boxes_n4 is not None else None,
        gaze=gaze(torch.cat(hits), boxes_n4, *images_nCHW.shape[-2:]) if hits and boxes_n4 is not None else None,
        iou=iou,
        whole_image_iou=whole_image_iou,
        mean_magnification=tuple((magnified / looked)[looked > 0].tolist()) if model.zooms else None,
    )


def on_object(trace: Trace, boxes: Tensor, height: int, width: int) -> Tensor:
    """Whether the centre of each glimpse of the first path lies in the box (B, 4), or in that of its frame (B, N, 4):
    bool (B, N).
    """
    size = trace.locations.new_tensor([width, height])
    places_BN2 = (trace.locations[0] + 1) / 2 * size
    box = boxes if boxes.dim() == 3 else boxes[:, None]
    return ((places_BN2 >= box[..., :2]) & (places_BN2 < box[..., 2:])).all(-1)


def used_glimpses(trace: Trace) -> Tensor:
    """Which glimpses the first path uses, bool (B, N): all, or of a model that stops by itself those until it does."""
    _, B, N, _ = trace.locations.shape
    number = torch.arange(N, device=trace.locations.device).expand(B, N)
    return number < (N if trace.glimpses is None else trace.glimpses[0][:, None])


def gaze(hits_nN: Tensor, boxes_nN4: Tensor, height: int, width: int) -> Gaze:
    """`hits`: 1 where the gaze is on the object, 0 where it is not, NaN where nobody looks any more."""
    low, high = boxes_nN4[..., :2].double(), boxes_nN4[..., 2:].double()
    middle = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    looked = ~hits_nN.isnan()
    centred = ((low <= middle) & (middle < high)).all(-1)[looked].double().mean()
    covered = ((high - low).prod(-1) / (height * width))[looked].mean()
    return Gaze(
        100 * hits_nN.nanmean().item(),
        tuple(None if math.isnan(share) else 100 * share for share in hits_nN.nanmean(0).tolist()),
        100 * centred.item(),
        100 * covered.item(),
    )
