"""Where to look, learned by back-propagation: the differentiable RAM of Semeniuta & Barth, 2016.

Semeniuta, Barth, "Image Classification with Recurrent Attention Models" (IEEE SSCI 2016), sections III and IV.

Implemented: Gaussian grids with rectangular strides, two GRU layers computed from the top down (eqs. 1 to 4) or one,
context network or none, fully-connected or convolutional glimpse network of three or five layers, pretraining with a
simple one, answers after the last or after every glimpse, from the recurrent state or from the glimpse alone, resets of
the classifier, absolute or relative centres with the repulsion of eq. 5, an upper limit on the size of the region,
noise in centre and stride, dropout of glimpses and in the recurrence, sequences from left to right or right to left,
attention on the map that the fixed first layers of a ConvNet make of an image (section IV.C).

Choices that the paper leaves open, and departures:
 1. An absolute centre is tanh of its linear map; a relative one is added to the previous centre, which starts in the
    middle of the image. Both are cut off at the edge of the image, after noise, too.
 2. Stride, variance and gain are exponentials (DRAW, eqs. 21 and 24); at 0 the grid covers the whole image. The filters
    start half a stride wide: narrower ones would miss most of a large image, and its gradients. The weights that place
    it start at a tenth of their usual size, so that the first grids of all images are alike. With a limit the
    stride is that limit times a sigmoid, so that its gradient never ends, and is cut off at the limit after noise; what
    is taken over from a reader without a limit (`init_from`) has narrower regions with one.
 3. The context network is that of DRAM: a coarse image, three convolutions, a hidden layer.
 4. The repulsion is that of one step alone, the third of the image; its mean over the batch is added to the loss.
 5. Noise is drawn in training and for sampled paths, not for the mean path.
 6. Dropout in the recurrence falls on the candidate of a GRU, never on its memory (Semeniuta et al. 2016,
    arXiv 1603.05118).
 7. Pixels are divided by 255. With `mean_image`, as for house numbers in section IV.B, the mean image of the first
    epoch of training is subtracted, and what is left is divided by 128, for the context network, too. The mean of each
    channel of the birds (section IV.C) is not subtracted.
 8. A fourth and a fifth convolution are 3×3 and keep the size of the map, of which little is left by then.
 9. The simple glimpse network of pretraining is one fully-connected layer; what comes after it is kept when it is
    switched for the real one, whose last layer takes its place.
10. With answers after every glimpse all of them count alike in training; of a sequence, all glimpses of a target. The
    answer that is given is that after the last one.
11. A single layer takes the context as an input at every step and chooses the next region from its own state; so the
    first region is the same for all images.
12. Of a video, glimpse n sees frame n alone, and the context is that of the first frame.
13. A region on a map is the region of the image with the same share of its sides, whatever the margins of the
    convolutions.
14. The reset gate of a GRU multiplies what comes of the memory, as torch has it, not the memory itself.
15. With `refit` grids that lie beside what they read, and reach too far, are moved onto it and narrowed before training
    goes on from another run (refitting.py).
16. It is never trained under autocast: there its loss ran away after a thousand steps or more, as the answers for some
    images grew ever surer and wrong, at half the rate and without clipping, too (RESULTS.md).
17. The experiments train with Adam whose rate rises to 1e-3 or 2e-3 and falls to nothing in one cycle; the paper has
    1e-4 throughout (section IV), as the experiment of the birds' attention has. The norm of the gradient is clipped at
    5, which the paper does not speak of.
18. The experiments on our own sequences of digits (`sequence_forward`, `sequence_backward`) do without the dropout and
    the pretraining of section IV.B.

Legend: B images, M samples (paths) per image, R = M·B rows, N glimpses per target, S targets, K classes, D hidden,
F features of a fully-connected layer, C channels, g filters of the grid per axis; H × W the image, or with a trunk its
map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_cli.config.schema import Glimpses, Scales, SoftRam
from attn_cli.errors import Refused
from attn_cli.glimpses.gaussian import Grid, boxes, extract
from attn_cli.glimpses.retina import Canvas
from attn_cli.models.convnets import Trunk
from attn_cli.models.dram import ContextNetwork, Convolutions, Head, check_glimpse_size, rectified, reversed_targets
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import Part
from attn_cli.models.refitting import refit


@dataclass(frozen=True)
class State:
    """Everything the next step needs; rows are paths."""

    canvas: Canvas  # its pixels are fp32 (B, C, H, W): the image in [0, 1], or its map
    image: Canvas  # its pixels are the uint8 image
    context: Tensor  # (R, 3D) what the context adds to the gates of the upper layer, or of the only one
    hidden: Tensor  # (R, D or F) what the answer is read from: h¹ or the features of the glimpse
    lower: Tensor  # (R, D) h¹
    upper: Tensor  # (R, D) h², what the grid is read from; with a single layer not used
    location: Tensor | None = None  # (R, 2) centre of the latest grid, the image spanning [-1, 1]
    shift: Tensor | None = None  # (R, 2) how far the centre was asked to move, same units
    grid: Grid | None = None  # the latest one, on the canvas
    sigma: Tensor | None = None  # (R,) of the filters, in pixels of the image
    seen: Tensor | None = None  # (R, C, g, g) what the grid saw
    log_prob: Tensor | None = None  # never there: nothing is drawn from a policy
    emitter: Tensor | None = None


class GRU(nn.Module):
    """One step of a layer (Cho et al. 2014, arXiv 1409.1259, with torch's place for the reset gate)."""

    def __init__(self, inputs: int, hidden: int, dropout: float):
        super().__init__()
        self.inputs = nn.Linear(inputs, 3 * hidden)
        self.memory = nn.Linear(hidden, 3 * hidden)
        self.dropout = nn.Dropout(dropout)

    @property
    def adds(self) -> int:
        """Multiply-adds."""
        return self.inputs.weight.numel() + self.memory.weight.numel()

    def forward(self, x_RF: Tensor, hidden_RD: Tensor, more_R3D: Tensor | float = 0.0) -> Tensor:
        """`more` is added to what comes from the input."""
        r, z, n = (self.inputs(x_RF) + more_R3D).chunk(3, 1)
        r_h, z_h, n_h = self.memory(hidden_RD).chunk(3, 1)
        update = torch.sigmoid(z + z_h)
        candidate = self.dropout(torch.tanh(n + torch.sigmoid(r + r_h) * n_h))
        return update * hidden_RD + (1 - update) * candidate


class SoftRAM(GlimpseModel):
    reads_sequences = True
    sized = True
    watches = True
    random_start = False
    halves = False
    noises = 4  # numbers a step: centre and stride, x and y
    attention: tuple[str, ...] = ("context_network", "context_gates", "upper", "extraction")
    mean_image: Tensor  # (C, H, W) of 0 to 255, with `mean_image`
    pretraining: Tensor  # bool (), with `pretrain_glimpse`: whether the simple glimpse network is in use

    def __init__(
        self,
        config: SoftRam,
        glimpses: Glimpses,
        scales: Scales,
        *,
        channels: int,
        classes: int,
        background: int = 0,
        length: int = 0,
        height: int,
        width: int,
    ):
        super().__init__()
        self.config = config
        self.stochastic = config.noise > 0
        self.glimpses, self.size = glimpses.count, glimpses.size
        classes = self.set_answers(classes, length)
        self.look_at_one_scale(config.name, scales.count)
        check_glimpse_size(config, glimpses)
        D, features = config.hidden, config.features
        self.trunk = Trunk(config.trunk, channels, height, width, config.trunk_layers) if config.trunk else None
        self.shape = self.trunk.shape if self.trunk else (channels, height, width)  # of what the grid lies on
        seen_channels = self.shape[0]
        pixels, self.look_adds = seen_channels * glimpses.size**2, 0
        self.convolutions: nn.Module = nn.Identity()
        if config.mean_image:
            self.register_buffer("mean_image", torch.zeros(channels, height, width))
        self.simple_layer: nn.Linear | None = None
        if config.pretrain_glimpse:
            self.simple_layer = rectified(nn.Linear(pixels, features))
            self.register_buffer("pretraining", torch.ones((), dtype=torch.bool))
            self.register_load_state_dict_post_hook(lambda module, _: module.pretrain(bool(module.pretraining)))
        self.simple = self.simple_layer is not None  # whether the simple glimpse network is in use
        if config.glimpse == "conv":
            convolutions = Convolutions(seen_channels, config.filters, glimpses.size)
            pixels, self.look_adds, self.convolutions = convolutions.features, convolutions.adds, convolutions
        self.glimpse_layer = rectified(nn.Linear(pixels, features))
        self.glimpse_dropout = nn.Dropout(config.dropout)
        self.look_adds += self.glimpse_layer.weight.numel()
        self.lower = GRU(features, D, config.recurrent_dropout)
        self.upper = GRU(D, D, config.recurrent_dropout) if config.layers == 2 else None
        self.context_network = ContextNetwork(config, channels) if config.context == "conv" else None
        self.context_gates = nn.Linear(D, 3 * D, bias=False) if config.context == "conv" else None
        if self.upper is None:
            self.attention = ("extraction",)
        self.extraction = nn.Linear(D, 6)  # c_x, c_y, log δ_x, log δ_y, log σ², log γ
        with torch.no_grad():
            self.extraction.weight.mul_(0.1)  # the first grids are alike
            self.extraction.bias.zero_()
            stride = max(self.shape[1:]) / self.size  # nearly that of a grid over the whole image
            stride *= 1.0 if config.limit is None else config.limit / 2
            self.extraction.bias[4] = 2 * math.log(max(1.0, stride / 2))
        self.every_step = config.answers == "every"
        self.classification_network = Head(features if config.answer_from == "glimpse" else D, features, classes)

    def pretrain(self, simple: bool) -> None:
        """Look through the simple glimpse network, or from now on through the real one."""
        self.simple = simple
        self.pretraining.fill_(simple)

    def reset_classifier(self) -> list[nn.Parameter]:
        """New weights for the last layer of the classification network, from torch's global generator; returns them."""
        self.classification_network.output.reset_parameters()
        return list(self.classification_network.output.parameters())

    def prepare(self, images: Callable[[], Iterable[Tensor]]) -> str | None:
        """Of batches (B, C, H, W), or of videos (B, T, C, H, W)."""
        if self.config.mean_image:
            sums, counts = zip(*((x.sum(0, dtype=torch.float64), len(x)) for x in map(frames, images())), strict=True)
            self.mean_image.copy_(sum(sums) / sum(counts))
        return refit(self, images) if self.config.refit else None

    def centred(self, images_BCHW: Tensor) -> Tensor:
        """The images, or with `mean_image` 255/128 of their difference from it; raises Refused for another size."""
        if not self.config.mean_image:
            return images_BCHW
        if images_BCHW.shape[1:] != self.mean_image.shape:
            own, other = ("×".join(map(str, x.shape[-2:])) for x in (self.mean_image, images_BCHW))
            raise Refused(f"The mean image of this model is of {own}, the images are of {other}.")
        return (images_BCHW - self.mean_image) * (255 / 128)

    def start(self, images_BCHW: Tensor, samples: int) -> State:
        """A state that has seen the coarse image or nothing, for M paths through each image; images are uint8."""
        weight, D = self.extraction.weight, self.config.hidden
        zeros = weight.new_zeros(samples * images_BCHW.shape[0], D)
        if self.context_network is not None and self.context_gates is not None:
            context = self.context_gates(self.context_network(self.centred(images_BCHW))).repeat(samples, 1)
        else:
            context = zeros.new_zeros(1, 3 * D).expand(zeros.shape[0], 3 * D)
        return State(*self.canvases(images_BCHW), context, zeros, zeros, zeros)

    def canvases(self, images_BCHW: Tensor) -> tuple[Canvas, Canvas]:
        """What the grid lies on, and the images themselves."""
        dtype = self.extraction.weight.dtype
        pixels = self.centred(images_BCHW).to(dtype) * (1 / 255)
        if self.trunk is not None:
            pixels = self.trunk(pixels).to(dtype)
        return Canvas(pixels, *pixels.shape[-2:]), Canvas(images_BCHW, *images_BCHW.shape[-2:])

    def watch(self, state: State, frames_BCHW: Tensor) -> State:
        """The same state in front of the next frame."""
        canvas, image = self.canvases(frames_BCHW)
        return replace(state, canvas=canvas, image=image)

    def step(self, state: State, noise_R4: Tensor, greedy: bool = False) -> State:
        """Move attention, look, think (eqs. 1 to 3). `noise_R4` is standard normal; with `greedy` it is not used."""
        upper = self.upper(state.lower, state.upper, state.context) if self.upper else state.lower  # eq. 1
        grid, shift = self.place(state, upper, noise_R4, greedy)
        seen = extract(state.canvas.pixels, grid, self.size)  # eq. 2
        features = self.glimpse_dropout(self.glimpse_network(seen))
        lower = self.lower(features, state.lower, 0.0 if self.upper else state.context)  # eq. 3
        return replace(
            state,
            hidden=features if self.config.answer_from == "glimpse" else lower,
            lower=lower,
            upper=upper,
            location=grid.centre,
            shift=shift,
            grid=grid,
            sigma=grid.sigma * (sum(enlargement(state)) / 2),
            seen=seen,
        )

    def glimpse_network(self, seen_RCgg: Tensor) -> Tensor:
        """What was seen, as features (R, F)."""
        if self.simple and self.simple_layer is not None:
            return F.relu(self.simple_layer(seen_RCgg.flatten(1)))
        return F.relu(self.glimpse_layer(self.convolutions(seen_RCgg).flatten(1)))

    def place(self, state: State, upper_RD: Tensor, noise_R4: Tensor, greedy: bool) -> tuple[Grid, Tensor]:
        """The next grid, and by how much (R, 2) its centre was to move."""
        config = self.config
        raw = self.extraction(upper_RD).to(state.canvas.pixels.dtype)
        before = torch.zeros_like(raw[:, :2]) if state.location is None else state.location
        centre = before + raw[:, :2] if config.centre == "relative" else torch.tanh(raw[:, :2])
        shift = centre - before
        span = [(side - 1) / (self.size - 1) for side in (state.canvas.width, state.canvas.height)]
        whole = torch.cat([raw.new_full((1,), side) for side in span])  # stride at which the grid covers the image
        stride = self.strides(raw)
        if config.noise and not greedy:
            uniform = config.noise * torch.erf(noise_R4 * math.sqrt(0.5))  # in [-α, α]
            centre, stride = centre + uniform[:, :2], stride * (1 + uniform[:, 2:])
            stride = stride if config.limit is None else stride.clamp(max=config.limit)
        return Grid(centre.clamp(-1, 1), stride * whole, torch.exp(0.5 * raw[:, 4]), torch.exp(raw[:, 5])), shift

    def strides(self, raw_R6: Tensor) -> Tensor:
        """δ_x, δ_y (R, 2) that the extraction network says, as shares of those of a grid over the whole image."""
        limit = self.config.limit
        return torch.exp(raw_R6[:, 2:4]) if limit is None else limit * torch.sigmoid(raw_R6[:, 2:4])

    def strides_from(self, strides_R2: Tensor) -> Tensor:
        """What the extraction network must say for them."""
        limit = self.config.limit
        return torch.log(strides_R2) if limit is None else torch.logit(strides_R2 / limit, 1e-4)

    def boxes(self, state: State, height: int, width: int) -> Tensor:
        assert state.grid is not None
        on_canvas = boxes(state.grid, self.size, state.canvas.height, state.canvas.width)
        return on_canvas * on_canvas.new_tensor(enlargement(state) * 2)

    def patches(self, state: State) -> Tensor:
        """What the grid saw; of a map or a difference, which are no pictures, but the same region of the image."""
        assert state.grid is not None and state.seen is not None and state.sigma is not None
        if self.trunk is None and not self.config.mean_image:
            return state.seen[:, None]
        grid = state.grid
        stride = grid.stride * grid.stride.new_tensor(enlargement(state))
        pixels = state.image.pixels.to(stride.dtype) * (1 / 255)
        seen = extract(pixels, Grid(grid.centre, stride, state.sigma, torch.ones_like(grid.gain)), self.size)
        return seen[:, None]

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits (…, K) of the classification network (eq. 4); with sequences K + 1, the last for "no more"."""
        return self.classification_network(hidden)

    def conclude(self, step_logits_MBNK: Tensor) -> Tensor:
        """The answer after the last glimpse."""
        return step_logits_MBNK[:, :, -1]

    def order(self, labels: Tensor) -> Tensor:
        """Labels as this reader answers them: a backward reader from right to left."""
        return reversed_targets(labels) if self.sequence and self.config.reader == "backward" else labels

    def parts(self, targets: float | None = None) -> list[Part]:
        (channels, height, width), g, context = self.shape, self.size, self.context_network
        rows, columns = channels * height * width * g, channels * height * g * g  # the two products of the grid
        answers = self.targets if targets is None else targets
        steps = self.glimpses * answers
        found = [
            Part("grid's place", self.extraction.weight.numel(), steps),
            Part("grid", rows + columns, steps, spared=steps * rows),
            Part("glimpse network", self.look_adds, steps),
            Part("recurrence", self.lower.adds + (self.upper.adds if self.upper else 0), steps),
            Part("classification network", self.classification_network.adds, steps if self.every_step else answers),
        ]
        if context is not None and self.context_gates is not None:
            adds, first = context.adds + self.context_gates.weight.numel(), context.convolutions.first_adds
            found.insert(0, Part("context network", adds, 1, spared=first, shared=True))
        if self.trunk is not None:  # forward alone
            maps = max(1, self.frames)
            found.insert(0, Part("trunk", self.trunk.adds, maps, spared=2 * maps * self.trunk.adds, shared=True))
        return found


def frames(images: Tensor) -> Tensor:
    """Images, or the frames of videos, one after the other (…, C, H, W)."""
    return images.flatten(0, -4)


def enlargement(state: State) -> tuple[float, float]:
    """Pixels of the image for one of what the grid lies on, x and y."""
    image, canvas = state.image, state.canvas
    return image.width / canvas.width, image.height / canvas.height
