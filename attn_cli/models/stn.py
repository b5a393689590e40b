"""Spatial transformers as readers: Jaderberg et al. 2015 (arXiv 1506.02025), and for sequences Sønderby et al. 2015.

Implemented: a localisation network over the whole image, a transform of the sampling grid that starts at the identity
(affine, or the attention of scale and shift), bilinear sampling of a crop, a small ConvNet that classifies it. With
sequences the Recurrent Spatial Transformer (Sønderby et al., arXiv 1509.05329): a GRU is stepped once for each target
on the same features of the image, and each target has a transform and a crop of its own.

Choices and departures:
 1. The rows "Jaderberg et al." in Table III of Semeniuta & Barth 2016 come from a deeper network, with a transformer of
    the image or one before each of its first four convolutions, and a softmax layer for each position. Here the
    sequence is read as Sønderby et al. do, from the image alone, with one more class for "no more".
 2. The localisation network is the context network of DRAM: a coarse image, three convolutions, two layers. Crop and
    coarse image go through three convolutions without pooling, the first of which takes every second place from a
    width of 17 pixels on, as in DRAM.
 3. The transform is read from a linear map whose weights start at 0, so that all first crops are the whole image. Its
    input is a tenth of the state: with all of it, Adam's first steps threw the crops of cluttered 100×100 digits out of
    the image, from where no gradient leads back.
 4. Outside the image the sampler reads what the data set calls empty. A crop that covers many more pixels than it has
    skips some: bilinear sampling does not average (section 3.4 of Jaderberg et al.).
 5. The crop is classified alone: the GRU decides where to look, and not what is said.
 6. Pixels are divided by 255.
 7. The experiments train with Adam whose rate rises and falls to nothing in one cycle, and clip the norm of the
    gradient at 5.

Legend: B images, M paths (all alike: nothing is drawn), R = M·B rows, S targets, K classes, D hidden, F features of a
crop, C channels, H × W image, g width of the crop in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_cli.config.model_sections import Stn
from attn_cli.config.schema import Glimpses, Scales
from attn_cli.errors import Refused
from attn_cli.glimpses.retina import Canvas
from attn_cli.models.dram import LARGE_CONTEXT, SMALLEST, ContextNetwork, Convolutions, Head
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import Part
from attn_cli.models.soft_ram import GRU

PACE = 0.1  # see 3
IDENTITY = {"affine": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), "attention": (1.0, 0.0, 0.0)}


@dataclass(frozen=True)
class State:
    """Everything the next step needs; rows are paths."""

    canvas: Canvas  # its pixels are fp32 (B, C, H, W) in [0, 1], less the background
    features: Tensor  # (R, D) of the localisation network
    memory: Tensor  # (R, D) what the transform is read from: the features, or the GRU's state
    hidden: Tensor | None = None  # (R, F) features of the crop, what the answer is read from
    location: Tensor | None = None  # (R, 2) centre of the latest crop, the image spanning [-1, 1]
    box: Tensor | None = None  # (R, 1, 4) x0, y0, x1, y1 in pixels: what encloses the crop, which may be turned
    patches: Tensor | None = None  # (R, 1, C, g, g) the crop
    log_prob: Tensor | None = None  # never there: nothing is chosen
    emitter: Tensor | None = None


class STN(GlimpseModel):
    reads_sequences = True
    attention = ("localisation", "recurrent", "transform")
    stochastic = random_start = False

    def __init__(
        self,
        config: Stn,
        glimpses: Glimpses,
        scales: Scales,
        *,
        channels: int,
        classes: int,
        background: int = 0,
        length: int = 0,
    ):
        super().__init__()
        self.look_at_one_scale(config.name, scales.count)
        if glimpses.count != 1:
            raise Refused(f"model={config.name} looks once for each answer: use glimpses=1.")
        if glimpses.size < SMALLEST:
            raise Refused(
                f"glimpses.size={glimpses.size} is too small for model={config.name}, whose three convolutions need "
                f"{SMALLEST} pixels."
            )
        self.config, self.glimpses, self.size = config, 1, glimpses.size
        self.background = background / 255
        classes = self.set_answers(classes, length)
        self.localisation = ContextNetwork(config, channels)
        self.recurrent = GRU(config.hidden, config.hidden, 0.0) if self.sequence else None
        identity = IDENTITY[config.transform]
        self.transform = nn.Linear(config.hidden, len(identity))
        with torch.no_grad():
            self.transform.weight.zero_()
            self.transform.bias.copy_(torch.tensor(identity))
        stride = 2 if self.size >= LARGE_CONTEXT else 1
        self.convolutions = Convolutions(channels, config.filters, self.size, stride)
        self.classification_network = Head(self.convolutions.features, config.features, classes)

    def start(self, images_BCHW: Tensor, samples: int) -> State:
        """A state that has seen the coarse image; images are uint8, of any size."""
        features = self.localisation(images_BCHW).repeat(samples, 1)
        height, width = images_BCHW.shape[-2:]
        pixels = images_BCHW.to(self.transform.weight.dtype) * (1 / 255) - self.background
        memory = features if self.recurrent is None else torch.zeros_like(features)
        return State(Canvas(pixels, height, width), features, memory)

    def step(self, state: State, noise_R2: Tensor, greedy: bool = False) -> State:
        """Place the crop, sample it, look at it; there is no chance in it, so `noise_R2` and `greedy` are not used."""
        memory = state.memory if self.recurrent is None else self.recurrent(state.features, state.memory)
        pixels, samples = state.canvas.pixels, len(memory) // len(state.canvas.pixels)
        with torch.autocast(pixels.device.type, enabled=False):  # half precision would move the crop
            theta = self.place(memory.to(pixels.dtype))
            crop = sample(pixels.repeat(samples, 1, 1, 1), theta, self.size) + self.background
        location, half = theta[:, :, 2], theta[:, :, :2].abs().sum(2)  # of the box around the turned square
        sides = torch.cat([pixels.new_full((1,), side) for side in (state.canvas.width, state.canvas.height)])
        box = torch.cat([(location - half + 1) * (sides / 2), (location + half + 1) * (sides / 2)], 1)
        return replace(
            state,
            memory=memory,
            hidden=self.convolutions(crop),
            location=location,
            box=box[:, None],
            patches=crop[:, None],
        )

    def place(self, memory: Tensor) -> Tensor:
        """The transform (R, 2, 3): from places in the crop to places in the image, both spanning [-1, 1] (eq. 1)."""
        raw = self.transform(PACE * memory)
        if self.config.transform == "affine":
            return raw.view(-1, 2, 3)
        scale, x, y = raw.unbind(1)
        nothing = torch.zeros_like(scale)
        return torch.stack([scale, nothing, x, nothing, scale, y], 1).view(-1, 2, 3)  # eq. 2

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits (…, K) of a crop; with sequences K + 1, the last for "no more"."""
        return self.classification_network(hidden)

    def parts(self, targets: float | None = None) -> list[Part]:
        """Sampling is no product of matrices and counts nothing."""
        answers, memory = self.targets if targets is None else targets, self.recurrent
        first, transform = self.localisation.convolutions.first_adds, self.transform.weight.numel()
        found = [
            Part("localisation network", self.localisation.adds, 1, spared=first, shared=True),
            Part("transform", transform, answers),
            Part("glimpse network", self.convolutions.adds, answers),
            Part("classification network", self.classification_network.adds, answers),
        ]
        if memory is not None:
            found.insert(1, Part("recurrence", memory.adds, answers, spared=memory.memory.weight.numel()))
        return found


def sample(images_RCHW: Tensor, theta_R23: Tensor, size: int) -> Tensor:
    """Crops (R, C, g, g), by bilinear interpolation where the transform puts the middles of their pixels; 0 outside.

    The grid is worked out by hand: `affine_grid` multiplies matrices, for which `trainer.precision=bf16` rounds places.
    """
    middles = (2 * torch.arange(size, device=theta_R23.device, dtype=theta_R23.dtype) + 1) / size - 1
    x, y = middles[None, None, :, None], middles[None, :, None, None]
    theta = theta_R23[:, None, None]  # (R, 1, 1, 2, 3)
    places = theta[..., 0] * x + theta[..., 1] * y + theta[..., 2]  # (R, g, g, 2)
    return F.grid_sample(images_RCHW, places, mode="bilinear", padding_mode="zeros", align_corners=False)
