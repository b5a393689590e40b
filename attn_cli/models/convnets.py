"""Feed-forward networks that the attention models are compared with: they see the whole image at once.

Implemented: the fully-connected networks and the ConvNet of one convolution of Tables 1 and 2 of Mnih et al. 2014
(arXiv 1406.6247, section 4.1); the ConvNet 64-64-64-512 of Table 2 and the 10-layer ConvNet of Tables 3 to 5 of Ba et
al. 2015 (arXiv 1412.7755, sections 4.2 and 4.3), the latter after Goodfellow et al. 2013 (arXiv 1312.6082) with a head
for each position of a sequence; any other stack of convolutions (or none) and fully-connected layers, with batch
normalisation or not; the first sets of convolution, ReLU and pooling of such a network as the fixed trunk of another
model.

Choices that the papers leave open:
 1. 64-64-64-512 is read as three convolutions of 64 filters, 5x5, 3x3 and 3x3 like those of the glimpse network, each
    followed by max-pooling, and a hidden layer of 512.
 2. The 10-layer ConvNet has kernels of 5x5 that keep the size, and max-pooling 3x3 after the second and 2x2 after the
    eighth layer: with it parameters and multiply-adds agree with Table 5 within 10 % for both sizes of image.
 3. A sequence has one linear head for each position, with a class for "no more" (Goodfellow et al. predict the length
    apart). What follows the end has no loss.
 4. Weights start as He et al. 2015 propose, the output layer at PyTorch's default. Pixels are divided by 255.
 5. An image of another size than that of the training is resized to it by area and bilinear interpolation ("resize" in
    Table 4).
 6. Batch normalisation comes between a convolution and its ReLU; the convolution keeps its bias.
 7. A ReLU comes after the max-pooling that follows it in the papers: the same values and gradients from fewer pixels,
    as ReLU never falls.
 8. The one convolution of Mnih et al. has 8 filters in the captions and 16 in the text. With 8 the network has as many
    parameters as RAM, which the paper says it has; 16 is an experiment of its own.
 9. The experiments train with Adam whose rate rises and falls to nothing in one cycle; the papers have stochastic
    gradient descent with momentum. The norm of the gradient is clipped at 5, of which the papers do not speak.

Legend: B images, M paths (1 by nature), R = M·B rows, S targets, K classes, C channels, H, W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_cli.config.schema import ConvNet as Config
from attn_cli.errors import Refused
from attn_cli.glimpses.retina import Canvas
from attn_cli.models.dram import rectified
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import Part

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class State:
    """All answers, given at once; a step passes on to the next. Rows are paths."""

    canvas: Canvas
    answers: Tensor  # (R, S, K) logits
    pixels: Tensor  # (R, 1, C, H, W) in [0, 1], what was seen
    at: int = 0  # target
    location: Tensor | None = None  # (R, 2) the centre of the image
    hidden: Tensor | None = None  # (R, K) logits of the latest target
    patches: Tensor | None = None
    log_prob: Tensor | None = None  # never there: nothing is chosen
    emitter: Tensor | None = None


def convolutions(
    config: Config, channels: int, height: int, width: int, count: int | None = None
) -> tuple[list[nn.Module], list[int], tuple[int, int, int]]:
    """The first `count` sets (None: all) of a convolution and what follows it, the multiply-adds of each convolution
    for one image, and the map (C, H, W) that comes out. Raises Refused if the images are too small for it.
    """
    layers: list[nn.Module] = []
    adds: list[int] = []
    place, inputs = [height, width], channels
    for i, outputs in enumerate(config.filters[:count]):
        kernel, stride, pool = config.kernels[i], config.strides[i], config.pools[i]
        margin = kernel // 2 if config.padding else 0
        convolution = rectified(nn.Conv2d(inputs, outputs, kernel, stride, margin))
        place = [(side + 2 * margin - kernel) // stride + 1 for side in place]
        adds.append(convolution.weight.numel() * place[0] * place[1])
        layers += [convolution, *([nn.BatchNorm2d(outputs)] if config.norm else [])]
        pooled = [(side + 2 * config.pool_padding - pool) // pool + 1 for side in place]
        if min(place) < 1 or (pool > 1 and min(pooled) < 1):
            raise Refused(
                f"Images of {height}×{width} are too small for model={config.name}: nothing is left of them after "
                f"its convolution {i + 1}."
            )
        if pool > 1:
            layers.append(nn.MaxPool2d(pool, padding=config.pool_padding))
            place = pooled
        layers.append(nn.ReLU())
        if config.dropout and config.dropout_layers == "all":
            layers.append(nn.Dropout(config.dropout))
        inputs = outputs
    return layers, adds, (inputs, place[0], place[1])


def channels_last(network: M) -> M:
    """The same network with the weights of its convolutions, and so its maps, in an order that suits a CPU better."""
    for weight in network.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.clone(memory_format=torch.channels_last)
    return network


class Trunk(nn.Sequential):
    """The first sets of a ConvNet, fixed: no gradient, no dropout, the statistics of training. Its weights have the
    names that they have in the ConvNet's `layers`.

    `shape`: what comes out, (C, H, W); `adds`: multiply-adds for one image.
    """

    def __init__(self, config: Config, channels: int, height: int, width: int, count: int):
        layers, adds, shape = convolutions(config, channels, height, width, count)
        super().__init__(*layers)
        self.shape, self.adds = shape, sum(adds)
        self.requires_grad_(False)
        channels_last(self)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """The map of images in [0, 1]."""
        seen: Tensor = super().forward(pixels_BCHW)
        return seen


class ConvNet(GlimpseModel):
    reads_sequences = True
    sized = True
    stochastic = random_start = moves = False
    is_backbone = True  # `layers` give the features, `output` reads them

    def __init__(
        self,
        config: Config,
        glimpses: object,
        scales: object,
        *,
        channels: int,
        classes: int,
        background: int = 0,
        length: int = 0,
        height: int,
        width: int,
    ):
        super().__init__()
        self.config, self.size = config, (height, width)
        self.glimpses = 1
        self.classes = self.set_answers(classes, length)
        layers, adds, shape = convolutions(config, channels, height, width)
        layers.append(nn.Flatten())
        inputs = math.prod(shape)
        for outputs in config.hidden:
            layers += [rectified(nn.Linear(inputs, outputs)), nn.ReLU()]
            adds.append(inputs * outputs)
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
            inputs = outputs
        self.layers = channels_last(nn.Sequential(*layers))
        self.output = nn.Linear(inputs, self.targets * self.classes)
        self.adds = [*adds, self.output.weight.numel()]  # multiply-adds of each layer for one image

    def start(self, images_BCHW: Tensor, samples: int) -> State:
        """The answers to all targets; images are uint8, of any size."""
        pixels = images_BCHW.to(self.output.weight.dtype) * (1 / 255)
        if images_BCHW.shape[-2:] != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        answers = self.output(self.layers(pixels)).view(-1, self.targets, self.classes).repeat(samples, 1, 1)
        height, width = images_BCHW.shape[-2:]
        return State(Canvas(images_BCHW, height, width), answers, pixels[:, None].repeat(samples, 1, 1, 1, 1))

    def step(self, state: State, noise_R2: Tensor, greedy: bool = False) -> State:
        """Say the next answer."""
        return replace(
            state,
            at=state.at + 1,
            hidden=state.answers[:, state.at],
            location=state.answers.new_zeros(state.answers.shape[0], 2),
            patches=state.pixels,
        )

    def classify(self, hidden: Tensor) -> Tensor:
        return hidden

    def parts(self, targets: float | None = None) -> list[Part]:
        """All answers are given at once, however many there are."""
        count = len(self.config.filters)
        kinds = {
            "convolutions": self.adds[:count],
            "fully-connected layers": self.adds[count:-1],
            "output": self.adds[-1:],
        }
        found = [Part(name, sum(adds), shared=True) for name, adds in kinds.items() if adds]
        return [replace(found[0], spared=self.adds[0]), *found[1:]]
