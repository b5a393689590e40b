"""Recurrent Soft Attention Model for Common Object Recognition. Ren, 2017 (arXiv 1705.01921).

Implemented: the down-sample network, the context memory C0 that makes a mask over the whole image, the glimpse network,
the memory C1 that answers after every glimpse, and its feedback to C0 (Figure 2); the arms of Figure 3; any ConvNet of
ours as the glimpse network.

Choices that the paper leaves open are those of the author's code:
 1. Sizes: 1,340,958 parameters for 32×32 RGB images and ten classes.
 2. C0 is stepped twice a glimpse with the same weights: on the features of the image, then on C1's hidden state.
 3. Pixels are scaled to [-1, 1]; the mask multiplies them there, so a mask of 0 shows grey.
 4. The 1×1 convolution is followed by nothing (`features_norm: true` adds the batch normalisation that the text has
    after every layer but the last, of each feature by itself instead of each map, and ReLU).
 5. The arm without a down-sample network has one fully-connected layer from the image to the same number of features.
Departures:
 6. What does not change over the glimpses is worked out once an image: the same features, but the running statistics of
    their batch normalisation move once a step instead of once a glimpse.
 7. Of CIFAR-10's 50,000 training images 5,000 choose the best epoch, and only the others are trained on.

Legend: B images, M paths (1 by nature), R = M·B rows, N glimpses, K classes, D hidden, C channels, H × W image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_cli.config import registry
from attn_cli.config.model_sections import Rsam
from attn_cli.config.schema import Glimpses, Scales
from attn_cli.errors import Refused
from attn_cli.glimpses.retina import Canvas
from attn_cli.models.convnets import channels_last
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import Part

REDUCED = 4  # channels that the down-sample network leaves
DOWN = ((16, 5), (32, 5))  # filters and kernels of its convolutions
LOOK = ((8, 5), (16, 5), (16, 3))  # of the glimpse network


@dataclass(frozen=True)
class State:
    """Everything the next step needs; rows are paths."""

    canvas: Canvas
    pixels: Tensor  # (R, C, H, W) in [-1, 1]
    features: Tensor  # (R, F) of the down-sampled image
    context: Tensor  # (R, D) hidden state of C0
    context_cell: Tensor  # (R, D)
    hidden: Tensor  # (R, D) hidden state of C1, what the answer is read from
    cell: Tensor  # (R, D)
    mask: Tensor | None = None  # (R, H, W) of the latest glimpse
    location: Tensor | None = None  # (R, 2) the centre of the image
    patches: Tensor | None = None  # (R, 1, C, H, W) the image with its black at 0 times the mask, for pictures
    log_prob: Tensor | None = None  # never there: nothing is chosen
    emitter: Tensor | None = None


class Blocks(nn.Sequential):
    """Convolutions that keep the size, each with batch normalisation, max-pooling by 2 and ReLU.

    `shape`: what comes out, (C, H, W); `adds`: multiply-adds per image, `first_adds`: those of the first layer.
    """

    def __init__(self, channels: int, height: int, width: int, layers: tuple[tuple[int, int], ...]):
        modules: list[nn.Module] = []
        adds = []
        for filters, kernel in layers:
            modules += [
                nn.Conv2d(channels, filters, kernel, padding=kernel // 2),
                nn.BatchNorm2d(filters),
                nn.MaxPool2d(2),
                nn.ReLU(),
            ]
            adds.append(filters * channels * kernel**2 * height * width)
            channels, height, width = filters, height // 2, width // 2
        super().__init__(*modules)
        channels_last(self)
        self.shape, self.adds, self.first_adds = (channels, height, width), sum(adds), adds[0]


class RSAM(GlimpseModel):
    sized = True
    attention = ("down_sample", "context", "mask")
    stochastic = random_start = moves = False
    every_step = masks = True

    def __init__(
        self,
        config: Rsam,
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
        if min(height, width) < 8:
            raise Refused(f"Images of {height}×{width} are too small for model={config.name}: it needs 8×8 at least.")
        self.config, self.glimpses = config, glimpses.count
        D = config.hidden
        if config.down_sample == "conv":
            blocks = Blocks(channels, height, width, DOWN)
            self.features = REDUCED * blocks.shape[1] * blocks.shape[2]
            reduce = nn.Conv2d(blocks.shape[0], REDUCED, 1)
            parts: list[nn.Module] = [blocks, reduce, nn.Flatten()]
            self.down_adds = blocks.adds + reduce.weight.numel() * blocks.shape[1] * blocks.shape[2]
            self.down_first = blocks.first_adds
        else:
            self.features = REDUCED * (height // 4) * (width // 4)
            self.down_adds = self.down_first = channels * height * width * self.features
            parts = [nn.Flatten(), nn.Linear(channels * height * width, self.features)]
        if config.features_norm:
            parts += [nn.BatchNorm1d(self.features), nn.ReLU()]
        self.down_sample = nn.Sequential(*parts)
        if config.feedback and self.features != D:
            raise Refused(
                f"model.hidden={D} must be {self.features} for images of {height}×{width}, because with model.feedback "
                "the features of the image and the feedback go through the same layer."
            )
        self.context = nn.LSTMCell(self.features, D)  # C0
        self.mask = nn.Sequential(nn.Linear(D, height * width), nn.BatchNorm1d(height * width), nn.ReLU())
        self.look: nn.Module
        if config.backbone is None:
            blocks = Blocks(channels, height, width, LOOK)
            self.look, self.look_adds, seen = blocks, blocks.adds, math.prod(blocks.shape)
        else:
            self.look, self.look_adds, seen = backbone(config, channels, classes, height, width)
        self.memory = nn.LSTMCell(seen, D)  # C1
        self.classifier = nn.Linear(D, classes)
        self.size = (height, width)

    def start(self, images_BCHW: Tensor, samples: int) -> State:
        """A state that has seen the down-sampled image; images are uint8."""
        weight, (height, width) = self.classifier.weight, images_BCHW.shape[-2:]
        if (height, width) != self.size:
            sides = "×".join(map(str, self.size))
            raise Refused(f"model={self.config.name} was made for images of {sides}, not of {height}×{width}.")
        pixels = images_BCHW.to(weight.dtype) * (1 / 127.5) - 1
        features = self.down_sample(pixels).repeat(samples, 1)
        zeros = features.new_zeros(features.shape[0], self.config.hidden)
        rows = pixels.repeat(samples, 1, 1, 1)
        return State(Canvas(images_BCHW, height, width), rows, features, zeros, zeros, zeros, zeros)

    def step(self, state: State, noise_R2: Tensor, greedy: bool = False) -> State:
        """Make a mask, look through it, think, feed back."""
        context, context_cell = self.context(state.features, (state.context, state.context_cell))
        mask = self.mask(context).view(-1, *self.size)
        masked = state.pixels * mask[:, None]
        hidden, cell = self.memory(self.look(masked).flatten(1), (state.hidden, state.cell))
        if self.config.feedback:
            context, context_cell = self.context(hidden, (context, context_cell))
        return replace(
            state,
            context=context,
            context_cell=context_cell,
            hidden=hidden,
            cell=cell,
            mask=mask,
            location=mask.new_zeros(mask.shape[0], 2),
            patches=((state.pixels + 1) / 2 * mask.detach()[:, None]).clamp(0, 1)[:, None],
        )

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits (…, K); the author's code puts a ReLU on them (`relu_logits`)."""
        logits = self.classifier(hidden)
        return F.relu(logits) if self.config.relu_logits else logits

    def conclude(self, step_logits_MBNK: Tensor) -> Tensor:
        """The answer from those after every glimpse: the mean of their probabilities, as a logarithm; or, as in the
        author's code, the sum of their log-probabilities.
        """
        log_p = F.log_softmax(step_logits_MBNK, -1)
        if self.config.average == "log_probabilities":
            return log_p.sum(2)
        return torch.logsumexp(log_p, 2)

    def parts(self, targets: float | None = None) -> list[Part]:
        def cell(layer: nn.LSTMCell) -> int:
            return layer.weight_ih.numel() + layer.weight_hh.numel()

        mask, N = self.mask[0].weight, self.glimpses
        assert isinstance(mask, Tensor)
        return [
            Part("down-sample network", self.down_adds, 1, spared=self.down_first, shared=True),
            Part("context memory", cell(self.context), 2 * N if self.config.feedback else N),
            Part("mask", mask.numel(), N),
            Part("glimpse network", self.look_adds, N),
            Part("classification memory", cell(self.memory), N),
            Part("classifier", self.classifier.weight.numel(), N),
        ]


def backbone(config: Rsam, channels: int, classes: int, height: int, width: int) -> tuple[nn.Module, int, int]:
    """A ConvNet without its last layer, its multiply-adds for an image, and how many features it gives."""
    assert config.backbone is not None
    name = config.backbone.name
    network = registry.load("model", name)
    if not getattr(network, "is_backbone", False):
        raise Refused(f"model.backbone={name} is no ConvNet: use one such as convnet_10_small.")
    made = network(config.backbone, None, None, channels=channels, classes=classes, height=height, width=width)
    return made.layers, sum(made.adds[:-1]), made.output.in_features
