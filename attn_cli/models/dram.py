"""Multiple Object Recognition with Visual Attention. Ba, Mnih, Kavukcuoglu, 2015 (arXiv 1412.7755).

Implemented: the glimpse network with its product of what and where (eq. 1), two LSTM layers (eq. 2), emission, context
and classification networks (section 3), the baseline (eq. 12); fully-connected (section 8.2) and convolutional
(section 8.3) glimpse networks, one or more scales; a context or none; one target or a sequence of them.

Departures from the paper, and choices that it leaves open:
 1. The default objective takes M = 4 paths per image in training, with the mean reward of the other three as the
    baseline. The paper's own is `samples: 1, baseline: learned, reward: correct` (eq. 11); `model=dram_mnist` has the
    probability of the true class as its reward.
 2. A location is looked at where it lies inside the image; beyond its edge, at the edge. The log-density is that of the
    sample itself, and the glimpse network is told the place that was looked at. The mean of the policy stays within the
    image, too: one beyond the edge counts as the edge, and no gradient pushes it further out. A mean that is free gets
    so far beyond in some runs that all of its samples are the same place: no gradient but noise brings it back.
 3. The context is the hidden state of the upper LSTM; its cell starts at 0. Both LSTMs have a forget-gate bias of 1.
 4. The coarse image is the mean over equal areas of the whole image. From a width of 17 pixels on, the first
    convolution of the context network takes every second place, so that its last map stays small.
 5. With several scales the convolutions see each patch alone, with the same weights or (`convolutions: separate`) with
    weights for each, and the fully-connected layer sees all of them.
 6. The variance of the location policy is `sigma`²; the paper's 0.03 is called a standard deviation in section 8.2 and
    a variance in section 8.3. `sigma` is 0.17, the root of that, and 0.3 for MNIST.
 7. The baseline is a linear map of the upper state, which receives no gradient from it.
 8. Layers with ReLU start as He et al. 2015 propose, and the biases of G_loc at 1, so that what was seen passes the
    product at first. From PyTorch's default the product of the two halves is too faint to learn from.
 9. A fully-connected hidden layer follows the convolutions of the context network, and tanh makes a state of it.
10. Dropout, which the paper places "between the hidden layers", falls on g, and on r⁽¹⁾ where the upper LSTM and the
    classification network read it.
11. The experiments train with Adam whose rate rises and falls to nothing in one cycle; the paper has Nesterov momentum
    and a rate of 0.01 that falls by 3 % an epoch (section 8.1). The norm of the gradient is clipped at 5, of which the
    paper does not speak. The lessons before the readers of two digits, and more of how those are trained, are in
    papers/dram.py.

Legend: B images, M samples (paths) per image, R = M·B rows, N glimpses per target, S targets, K classes, D hidden,
F features of a fully-connected layer, k scales, C channels, g width, c coarse width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_cli.config.model_sections import Dram, SoftRam, Stn
from attn_cli.config.schema import Glimpses, Scales
from attn_cli.errors import Refused
from attn_cli.glimpses.retina import Canvas, Retina
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import Part

L = TypeVar("L", nn.Linear, nn.Conv2d)

KERNELS = (5, 3, 3)  # of the three convolutions, without padding
SMALLEST = sum(KERNELS) - len(KERNELS) + 1  # pixels a side that they need
LARGE_CONTEXT = 17  # pixels; see departure 4


class Inside(torch.autograd.Function):
    """Means (R, 2) kept within ±limits (2,); a gradient that would push one further out ends here (departure 2)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(means: Tensor, limits: Tensor) -> Tensor:  # type: ignore[override]
        return means.clamp(-limits, limits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # type: ignore[override]
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        means, limits = ctx.saved_tensors
        outwards = gradient * means < 0  # a step of descent goes against the gradient
        return gradient.masked_fill((means.abs() > limits) & outwards, 0.0), None


@dataclass(frozen=True)
class State:
    """Everything the next step needs; rows are paths."""

    canvas: Canvas
    hidden: Tensor  # (R, D) r⁽¹⁾, what the answer is read from
    cell: Tensor  # (R, D)
    upper: Tensor  # (R, D) r⁽²⁾, what the next location is read from
    upper_cell: Tensor  # (R, D)
    location: Tensor | None = None  # (R, 2) of the latest glimpse, the image spanning [-1, 1]
    log_prob: Tensor | None = None  # (R,) of that location
    emitter: Tensor | None = None  # (R, D) the upper state that chose it
    patches: Tensor | None = None  # (R, k, C, g, g) what was seen there


def rectified(layer: L) -> L:
    """A layer that ReLU follows, with the weights that keep the size of what passes (He et al. 2015)."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class LSTM(nn.Module):
    """One step of a layer: i, f, c, o from one linear map of [r, x]."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.gates = nn.Linear(hidden + inputs, 4 * hidden)
        with torch.no_grad():
            self.gates.bias[hidden : 2 * hidden] += 1.0

    def forward(self, x_RF: Tensor, hidden_RD: Tensor, cell_RD: Tensor) -> tuple[Tensor, Tensor]:
        i, f, c, o = self.gates(torch.cat([hidden_RD, x_RF], 1)).chunk(4, 1)
        cell = torch.sigmoid(f) * cell_RD + torch.sigmoid(i) * torch.tanh(c)
        return torch.sigmoid(o) * torch.tanh(cell), cell


class Convolutions(nn.Sequential):
    """Three convolutions without padding, then any that keep the size, 3×3, each with ReLU; flattened.

    `features`: numbers that come out; `adds`: multiply-adds per image; `first_adds`: those of the first layer.
    """

    def __init__(self, channels: int, filters: tuple[int, ...], width: int, stride: int = 1):
        layers: list[nn.Module] = []
        adds = []
        for i, outputs in enumerate(filters):
            kernel, padding = (KERNELS[i], 0) if i < len(KERNELS) else (3, 1)
            width = (width + 2 * padding - kernel) // stride + 1
            adds.append(outputs * channels * kernel**2 * width**2)
            layers += [rectified(nn.Conv2d(channels, outputs, kernel, stride, padding)), nn.ReLU()]
            channels, stride = outputs, 1
        super().__init__(*layers, nn.Flatten())
        self.features, self.adds, self.first_adds = channels * width**2, sum(adds), adds[0]


class GlimpseNetwork(nn.Module):
    """g = G_image(x) · G_loc(l), element by element (eq. 1)."""

    def __init__(self, config: Dram, retina: Retina):
        super().__init__()
        self.convolutions = nn.ModuleList()
        pixels, self.adds, self.first_adds = retina.features, 0, retina.features * config.features
        if config.glimpse == "conv":
            own = retina.scales if config.convolutions == "separate" else 1
            parts = [Convolutions(retina.channels, config.filters, retina.size) for _ in range(own)]
            self.convolutions.extend(parts)
            pixels = retina.scales * parts[0].features
            self.adds, self.first_adds = retina.scales * parts[0].adds, retina.scales * parts[0].first_adds
        self.what = rectified(nn.Linear(pixels, config.features))
        self.where = nn.Linear(2, config.features)
        nn.init.ones_(self.where.bias)
        self.adds += self.what.weight.numel() + self.where.weight.numel()  # multiply-adds
        self.first_adds += self.where.weight.numel()  # of layers that read pixels or a location

    def forward(self, patches_RkCgg: Tensor, location_R2: Tensor) -> Tensor:
        if self.convolutions:
            k, own = patches_RkCgg.shape[1], len(self.convolutions)
            flat = torch.cat([self.convolutions[i % own](patches_RkCgg[:, i]) for i in range(k)], 1)
        else:
            flat = patches_RkCgg.flatten(1)
        return F.relu(self.what(flat)) * F.relu(self.where(location_R2))


class ContextNetwork(nn.Module):
    """The first upper state from a coarse version of the whole image."""

    def __init__(self, config: Dram | SoftRam | Stn, channels: int):
        super().__init__()
        if config.coarse < SMALLEST:
            raise Refused(
                f"model.coarse={config.coarse} is too small: three convolutions need at least {SMALLEST} pixels."
            )
        self.coarse = config.coarse
        stride = 2 if config.coarse >= LARGE_CONTEXT else 1
        self.convolutions = Convolutions(channels, config.filters[: len(KERNELS)], config.coarse, stride)
        self.what = rectified(nn.Linear(self.convolutions.features, config.features))
        self.state = nn.Linear(config.features, config.hidden)
        self.adds = self.convolutions.adds + self.what.weight.numel() + self.state.weight.numel()  # multiply-adds

    def forward(self, images_BCHW: Tensor) -> Tensor:
        dtype = self.what.weight.dtype
        coarse = F.adaptive_avg_pool2d(images_BCHW.to(dtype), self.coarse) * (1 / 255)
        return torch.tanh(self.state(F.relu(self.what(self.convolutions(coarse)))))


class Head(nn.Module):
    """One fully-connected hidden layer with ReLU, and a linear output."""

    def __init__(self, hidden: int, features: int, outputs: int):
        super().__init__()
        self.layer = rectified(nn.Linear(hidden, features))
        self.output = nn.Linear(features, outputs)
        self.adds = self.layer.weight.numel() + self.output.weight.numel()  # multiply-adds

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.relu(self.layer(x)))


class DRAM(GlimpseModel):
    reads_sequences = True
    attention = ("context_network", "upper", "emission_network")
    random_start = False

    def __init__(
        self,
        config: Dram,
        glimpses: Glimpses,
        scales: Scales,
        *,
        channels: int,
        classes: int,
        background: int = 0,
        length: int = 0,
    ):
        super().__init__()
        self.config = config
        self.glimpses = glimpses.count
        classes = self.set_answers(classes, length)
        check_glimpse_size(config, glimpses)
        self.retina = Retina(glimpses.size, scales.count, channels, background)
        D, features = config.hidden, config.features
        self.glimpse_network = GlimpseNetwork(config, self.retina)
        self.lower = LSTM(features, D)
        self.upper = LSTM(D, D)
        self.context_network = ContextNetwork(config, channels) if config.context == "conv" else None
        self.emission_network = Head(D, features, 2)
        self.classification_network = Head(D, features, classes)
        self.baseline_network = nn.Linear(D, 1)
        self.dropout = nn.Dropout(config.dropout)

    def start(self, images_BCHW: Tensor, samples: int) -> State:
        """A state that has seen the coarse image or nothing, for M paths through each image; images are uint8."""
        canvas = self.retina.frame(images_BCHW)
        weight = self.lower.gates.weight
        zeros = torch.zeros(
            samples * images_BCHW.shape[0], self.config.hidden, device=weight.device, dtype=weight.dtype
        )
        upper = zeros if self.context_network is None else self.context_network(images_BCHW).repeat(samples, 1)
        return State(canvas, zeros, zeros, upper, zeros)

    def step(self, state: State, noise_R2: Tensor, greedy: bool = False) -> State:
        """Choose a location, look there, think. `noise_R2` is standard normal; `greedy` takes the mean location."""
        location, log_prob = self.choose(state, noise_R2, greedy)
        patches = self.retina.look(state.canvas, location)
        where = location * self.units(state.canvas)
        g = self.dropout(self.glimpse_network(patches.to(state.hidden.dtype), where))
        hidden, cell = self.lower(g, state.hidden, state.cell)
        seen = self.dropout(hidden.detach() if self.config.policy_gradient == "upper" else hidden)
        upper, upper_cell = self.upper(seen, state.upper, state.upper_cell)
        return replace(
            state,
            hidden=hidden,
            cell=cell,
            upper=upper,
            upper_cell=upper_cell,
            location=location,
            log_prob=log_prob,
            emitter=state.upper,
            patches=patches,
        )

    def units(self, canvas: Canvas) -> Tensor:
        """Half the image in units of the policy's coordinates, (2,) as x, y."""
        half = [canvas.width / 2 / self.config.unit_width, canvas.height / 2 / self.config.unit_width]
        # Filled on the device: a tensor of Python numbers would be copied there at every step.
        return torch.cat([canvas.pixels.new_full((1,), side, dtype=torch.float32) for side in half])

    def choose(self, state: State, noise_R2: Tensor, greedy: bool) -> tuple[Tensor, Tensor]:
        """The next location (R, 2) in [-1, 1] and its log-density (R,) in units of `unit_width` (eqs. 3 and 9)."""
        sigma, units = self.config.sigma, self.units(state.canvas)
        mean = cast(Tensor, Inside.apply(self.emission_network(state.upper), units))
        sample = (mean if greedy else mean + sigma * noise_R2).detach()
        log_prob = -0.5 * ((sample - mean) / sigma).square().sum(-1) - 2 * math.log(sigma * math.sqrt(2 * math.pi))
        return (sample / units).clamp(-1, 1), log_prob

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits (…, K) of the classification network (eq. 4); with sequences K + 1, the last for "no more"."""
        return self.classification_network(self.dropout(hidden))

    def order(self, labels: Tensor) -> Tensor:
        """Labels as this reader answers them (section 4.3: backward is from right to left)."""
        return reversed_targets(labels) if self.sequence and self.config.reader == "backward" else labels

    def baseline(self, hidden: Tensor) -> Tensor:
        """Predicted reward (…) of an upper state (eq. 12); never sends gradient into it."""
        return self.baseline_network(hidden.detach())[..., 0]

    def parts(self, targets: float | None = None) -> list[Part]:
        look, context = self.glimpse_network, self.context_network
        answers = self.targets if targets is None else targets
        steps, judge = self.glimpses * answers, self.baseline_network.weight.numel()
        found = [
            Part("glimpse network", look.adds, steps, spared=steps * look.first_adds),
            Part("lower LSTM", self.lower.gates.weight.numel(), steps),
            Part("upper LSTM", self.upper.gates.weight.numel(), steps),
            Part("emission network", self.emission_network.adds, steps),
            Part("classification network", self.classification_network.adds, answers),
        ]
        if context is not None:
            found.insert(0, Part("context network", context.adds, 1, context.convolutions.first_adds, shared=True))
        if self.config.baseline == "learned":
            found.append(Part("baseline", judge, steps, spared=steps * judge, training_only=True))
        return found


def check_glimpse_size(config: Dram | SoftRam, glimpses: Glimpses) -> None:
    """Refuse glimpses that are too small for convolutions."""
    if config.glimpse == "conv" and glimpses.size < SMALLEST:
        raise Refused(
            f"glimpses.size={glimpses.size} is too small for model.glimpse=conv, whose three convolutions need "
            f"{SMALLEST} pixels: use a larger size or model.glimpse=fc."
        )


def reversed_targets(targets_BS: Tensor) -> Tensor:
    """Labels from right to left; the terminal class and what follows stay. (B, S) → (B, S)."""
    S = targets_BS.shape[1]
    labels = ((targets_BS >= 0).sum(1) - 1)[:, None]  # k, without the terminal class
    place = torch.arange(S, device=targets_BS.device).expand_as(targets_BS)
    return targets_BS.gather(1, torch.where(place < labels, labels - 1 - place, place))
