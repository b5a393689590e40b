"""The classifier of DRAW: A Recurrent Neural Network For Image Generation. Gregor et al. 2015 (arXiv 1502.04623).

Implemented: section 4.1, the rows "Gregor et al." in Table I of Semeniuta & Barth 2016. One LSTM; a linear map of its
state places a square grid of Gaussian filters over the image (section 3.2, eqs. 19 to 26), what these read goes into
the LSTM, and a softmax layer answers from its state after the last glimpse.

Choices that the paper leaves open, and departures:
 1. The first grid is read from a state of zeros: it is the bias of the linear map, which starts at 0, a grid over the
    whole image. The centre is not restricted; filters that lie outside the image read the pixels at its edge.
 2. The filters start half a stride wide: narrower ones would miss most of a large image, and its gradients.
 3. Filter rows are normalised as a softmax, which cannot divide by zero.
 4. The forget gate of the LSTM has a bias of 1. Pixels are divided by 255.
 5. The experiments train with Adam whose rate rises and falls to nothing in one cycle, and clip the norm of the
    gradient at 5.

Legend: B images, M paths (all alike: nothing is drawn), R = M·B rows, N glimpses, K classes, D hidden, C channels,
g filters of the grid per axis (the paper's N).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attn_cli.config.model_sections import DrawReader as Config
from attn_cli.config.schema import Glimpses, Scales
from attn_cli.glimpses.gaussian import Grid, boxes, extract
from attn_cli.glimpses.retina import Canvas
from attn_cli.models.dram import LSTM
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import Part


@dataclass(frozen=True)
class State:
    """Everything the next step needs; rows are paths."""

    canvas: Canvas  # its pixels are fp32 (B, C, H, W) in [0, 1]
    hidden: Tensor  # (R, D) what the grid and the answer are read from
    cell: Tensor  # (R, D)
    location: Tensor | None = None  # (R, 2) centre of the latest grid, the image spanning [-1, 1]
    box: Tensor | None = None  # (R, 1, 4) x0, y0, x1, y1 in pixels
    patches: Tensor | None = None  # (R, 1, C, g, g) what was seen there
    sigma: Tensor | None = None  # (R,) of the filters, in pixels
    log_prob: Tensor | None = None  # never there: nothing is drawn from a policy
    emitter: Tensor | None = None


class DrawReader(GlimpseModel):
    sized = True
    attention = ("grid",)
    stochastic = random_start = False

    def __init__(
        self,
        config: Config,
        glimpses: Glimpses,
        scales: Scales,
        *,
        channels: int,
        classes: int,
        background: int = 0,
        height: int,
        width: int,
    ):
        super().__init__()
        self.look_at_one_scale(config.name, scales.count)
        self.config, self.image_size, self.channels = config, (height, width), channels
        self.glimpses, self.size = glimpses.count, glimpses.size
        self.lstm = LSTM(channels * self.size**2, config.hidden)
        self.grid = nn.Linear(config.hidden, 5)  # g̃_X, g̃_Y, log σ², log δ̃, log γ
        with torch.no_grad():
            self.grid.bias.zero_()
            self.grid.bias[2] = 2 * math.log(max(1.0, self.whole(height, width) / 2))
        self.output = nn.Linear(config.hidden, classes)

    def whole(self, height: int, width: int) -> float:
        """The stride in pixels at which the grid covers the whole image."""
        return (max(height, width) - 1) / (self.size - 1)

    def start(self, images_BCHW: Tensor, samples: int) -> State:
        """A state that has seen nothing, for M paths through each image; images are uint8."""
        weight = self.output.weight
        height, width = images_BCHW.shape[-2:]
        zeros = weight.new_zeros(samples * images_BCHW.shape[0], self.config.hidden)
        return State(Canvas(images_BCHW.to(weight.dtype) * (1 / 255), height, width), zeros, zeros)

    def step(self, state: State, noise_R2: Tensor, greedy: bool = False) -> State:
        """Place the grid, look, think; there is no chance in it, so `noise_R2` and `greedy` are not used."""
        grid = self.place(state)
        seen = extract(state.canvas.pixels, grid, self.size)  # eq. 27
        hidden, cell = self.lstm(seen.flatten(1), state.hidden, state.cell)
        box = boxes(grid, self.size, state.canvas.height, state.canvas.width)
        return replace(
            state, hidden=hidden, cell=cell, location=grid.centre, box=box, patches=seen[:, None], sigma=grid.sigma
        )

    def place(self, state: State) -> Grid:
        """The next grid."""
        height, width = state.canvas.height, state.canvas.width
        with torch.autocast(state.hidden.device.type, enabled=False):  # half precision would move the grid
            raw = self.grid(state.hidden.to(state.canvas.pixels.dtype))  # eq. 21
        # Eqs. 22 and 23 count pixels from 1, which puts g̃ = ±1 one pixel beyond the middle of an outermost pixel; a
        # centre of ±1 is half a pixel beyond it.
        centre = torch.stack([raw[:, 0] * ((width + 1) / width), raw[:, 1] * ((height + 1) / height)], 1)
        stride = self.whole(height, width) * torch.exp(raw[:, 3:4])  # eq. 24
        return Grid(centre, stride.expand(-1, 2), torch.exp(0.5 * raw[:, 2]), torch.exp(raw[:, 4]))

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits (…, K)."""
        return self.output(hidden)

    def parts(self, targets: float | None = None) -> list[Part]:
        (height, width), g, N = self.image_size, self.size, self.glimpses
        rows, columns = self.channels * height * width * g, self.channels * height * g * g  # products of the grid
        place = self.grid.weight.numel()
        return [
            Part("grid's place", place, N, spared=place),
            Part("grid", rows + columns, N, spared=N * rows),
            Part("LSTM", self.lstm.gates.weight.numel(), N),
            Part("output", self.output.weight.numel()),
        ]
