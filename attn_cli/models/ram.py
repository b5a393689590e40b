"""Recurrent Models of Visual Attention. Mnih, Heess, Graves, Kavukcuoglu, 2014 (arXiv 1406.6247).

Implemented: glimpse sensor and network, ReLU core (LSTM core as in section 4.2), location, action and baseline
networks, Gaussian location policy with fixed variance, a policy over a grid of places (footnote 2), random glimpses
(Table 1a), an action that stops and one that chooses the scale (section 5; see stopping.py, glimpses/zoom.py).

Departures from the paper, and choices that it leaves open:
 1. Linear(h) + Linear(g) is one linear map of the concatenation [h, g] (likewise [h_g, h_l]): the same functions,
    one bias instead of two.
 2. The default objective takes M = 4 paths per image in training, the mean reward of the other three as the
    baseline, and the probability of the true class as the reward. The paper's own is `samples: 1, baseline: learned,
    reward: correct`. Validation error on cluttered 60×60, one core: 12.7 % after 187 s (6 epochs) against 23.8 % of
    the paper's, λ 0.03, after 199 s (18 epochs), each with its one-cycle schedule run out. The policy gradient reaches
    the core, as in eq. 1; `policy_gradient: detached` stops it at the location network. The baseline network never
    sends gradient into the core.
 3. Samples are clamped to [-1, 1] to look; the log-density is that of the unclamped sample. The first location is
    uniform; with `first: learned` the policy chooses it, too, from the state that has seen nothing.
 4. `location_mean: tanh` squashes the mean; the paper's is linear, the default.
 5. The LSTM core starts with a forget-gate bias of 1.
 6. `policy: fixed` looks at the centre all the time, for comparison.
 7. With `scale: learned` the location network has a third output, the mean of a normal distribution over the logarithm
    of the magnification; like a location it is in [-1, 1] from the smallest to the largest, clamped to look, and the
    squashing of 4 applies to it. Training begins near the middle, the geometric mean of the two.
 8. One decision gives location and scale: log p(l) + log p(s), one return, one baseline.
 9. The first glimpse, at random, has the largest magnification: what is not yet seen is best looked at as a whole.
10. The glimpse network is told the scale, in these units, as a third coordinate of where it looked.
11. Of a video, glimpse n sees frame n alone, and the answer follows the last one (section 5: "video classification").
12. Outside the image the retina reads what the data set calls empty. Its patches lie around whole pixels.
13. The experiments train with Adam whose rate rises and falls to nothing in one cycle; the paper has stochastic
    gradient descent with a momentum of 0.9 (section 4.1). The norm of the gradient is clipped at 5, for Catch at 1, of
    which the paper does not speak.

Legend: B images, M samples (paths) per image, R = M·B rows, N glimpses, K classes, D hidden, k scales, C channels,
g width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_cli.config.schema import Glimpses, Ram, RamCatch, Scales
from attn_cli.errors import Refused
from attn_cli.glimpses.retina import Canvas, Retina
from attn_cli.glimpses.zoom import Zoom
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import Part
from attn_cli.models.stopping import Bounded, sureness


@dataclass(frozen=True)
class State:
    """Everything the next step needs; rows are paths."""

    canvas: Canvas
    hidden: Tensor  # (R, D)
    cell: Tensor | None  # (R, D) of the LSTM core
    location: Tensor | None = None  # (R, 2) of the latest glimpse; None before the first
    magnification: Tensor | None = None  # (R,) of that glimpse; None with a retina of whole pixels
    log_prob: Tensor | None = None  # (R,) of that location and scale; None where the policy did not choose them
    emitter: Tensor | None = None  # (R, D) the state that chose it
    patches: Tensor | None = None  # (R, k, C, g, g) what was seen there


class GlimpseNetwork(nn.Module):
    """g = Rect(Linear(h_g) + Linear(h_l)), h_g = Rect(Linear(ρ)), h_l = Rect(Linear(l)); section 4."""

    def __init__(self, pixels: int, coordinates: int, hidden: int, features: int):
        super().__init__()
        self.what = nn.Linear(pixels, hidden)
        self.where = nn.Linear(coordinates, hidden)
        self.combine = nn.Linear(2 * hidden, features)

    def forward(self, patches_RP: Tensor, gaze: Tensor) -> Tensor:
        h_g = F.relu(self.what(patches_RP))
        h_l = F.relu(self.where(gaze))
        return F.relu(self.combine(torch.cat([h_g, h_l], 1)))


def normal(mean_RA: Tensor, sigma: float, noise_RA: Tensor | None) -> tuple[Tensor, Tensor]:
    """A sample (R, A) of normal distributions, or without noise their means, and its log-density (R,)."""
    sample = (mean_RA if noise_RA is None else mean_RA + sigma * noise_RA).detach()
    deviation = (sample - mean_RA) / sigma
    normaliser = mean_RA.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return sample, -0.5 * deviation.square().sum(-1) - normaliser


class RAM(GlimpseModel):
    places: Tensor

    watches = True
    attention: tuple[str, ...] = ("location_network",)

    def __init__(
        self,
        config: Ram | RamCatch,
        glimpses: Glimpses,
        scales: Scales,
        *,
        channels: int,
        classes: int,
        background: int = 0,
    ):
        super().__init__()
        if config.policy == "grid" and config.grid**2 > 25:
            raise Refused(
                f"model.grid={config.grid} is more than 25 places, the most that the paper could learn: use at most 5."
            )
        self.stops, self.zooms = config.stop == "learned", config.scale == "learned"
        for action in ("stop", "scale"):
            if getattr(config, action) == "learned" and glimpses.count < 2:
                raise Refused(f"model.{action}=learned has nothing to decide with glimpses.count=1: use at least 2.")
        self.noises += self.stops + self.zooms  # the decision to answer has the third number, the scale the last
        self.config = config
        self.glimpses = glimpses.count
        self.stochastic = config.policy != "fixed"
        self.random_start = self.stochastic and (config.first == "random" or config.policy == "random")
        if config.policy in ("random", "fixed"):
            self.attention = ()  # the location network is not asked
        self.retina = Retina(glimpses.size, scales.count, channels, background)
        zoomed = self.zooms or config.magnification != 1
        self.zoom = Zoom(glimpses.size, scales.count, channels, background) if zoomed else None
        self.octaves = self.scale_sigma = 0.0
        if isinstance(config, Ram) and self.zooms:
            self.octaves = math.log2(config.largest_magnification / config.magnification)
            self.scale_sigma = config.scale_sigma / (self.octaves / 2)  # in units of where it looks
        D, gaze = config.hidden, 2 + self.zooms
        self.glimpse_network = GlimpseNetwork(
            self.retina.features, gaze, config.glimpse_hidden, config.glimpse_features
        )
        self.core = nn.Linear(D + config.glimpse_features, D if config.core == "relu" else 4 * D)
        if config.core == "lstm":
            with torch.no_grad():
                self.core.bias[D : 2 * D] += 1.0
        self.location_network = nn.Linear(D, config.grid**2 if config.policy == "grid" else gaze)
        self.action_network = nn.Linear(D, classes)
        self.baseline_network = nn.Linear(D, 1)
        if self.stops:
            self.stop_network = nn.Linear(D + 1, 1)
        places = (2 * torch.arange(config.grid) + 1) / config.grid - 1
        y, x = torch.meshgrid(places, places, indexing="ij")
        self.register_buffer("places", torch.stack([x, y], -1).view(-1, 2), persistent=False)  # (grid², 2)

    def start(self, images_BCHW: Tensor, samples: int) -> State:
        """A state that has seen nothing, for M paths through each image; images are uint8."""
        canvas = (self.zoom or self.retina).frame(images_BCHW)
        R, D = samples * images_BCHW.shape[0], self.config.hidden
        weight = self.core.weight
        hidden = torch.zeros(R, D, device=weight.device, dtype=weight.dtype)
        return State(canvas, hidden, torch.zeros_like(hidden) if self.config.core == "lstm" else None)

    def watch(self, state: State, frames_BCHW: Tensor) -> State:
        """The same state in front of the next frame; in a game each row has its own."""
        return replace(state, canvas=(self.zoom or self.retina).frame(frames_BCHW))

    def step(self, state: State, noise: Tensor, greedy: bool = False) -> State:
        """Choose a location and scale, look there, think. `noise` (R, noises) is standard normal; `greedy` takes the
        means.
        """
        gaze, log_prob = self.choose(state, noise.to(self.core.weight.dtype), greedy)
        location, magnification = gaze[:, :2], None
        if self.zoom is None:
            patches = self.retina.look(state.canvas, location)
        else:
            magnification = self.magnification(gaze)
            patches = self.zoom.look(state.canvas, location, magnification)
        features = self.glimpse_network(self.sense(patches).flatten(1).to(state.hidden.dtype), gaze)
        hidden, cell = self.think(state, features)
        return replace(
            state, hidden=hidden, cell=cell, location=location, magnification=magnification, log_prob=log_prob,
            emitter=state.hidden, patches=patches,
        )  # fmt: skip

    def magnification(self, gaze: Tensor) -> Tensor:
        """Pixels a side of a cell of the finest patch (R,)."""
        if not self.zooms:
            return gaze.new_full((len(gaze),), self.config.magnification)
        return self.config.magnification * torch.exp2((gaze[:, 2] + 1) * (self.octaves / 2))

    def sense(self, patches: Tensor) -> Tensor:
        """What the glimpse network is given of the patches (R, k, C, g, g): here the patches."""
        return patches

    def choose(self, state: State, noise: Tensor, greedy: bool) -> tuple[Tensor, Tensor | None]:
        """Where to look next, (R, 2) in [-1, 1], or (R, 3) with the scale, -1 for the smallest magnification and 1 for
        the largest; and the log-density (R,) of this, None where no policy chose it.
        """
        config, noise_R2 = self.config, noise[:, :2]
        if config.policy == "fixed":
            return torch.zeros_like(noise_R2), None
        if (state.location is None and self.random_start) or config.policy == "random":
            location = torch.erf(noise_R2 * math.sqrt(0.5))  # Φ of a normal is uniform: on [-1, 1] here
            return F.pad(location, (0, 1), value=1.0) if self.zooms else location, None
        emitter = state.hidden if config.policy_gradient == "full" else state.hidden.detach()
        output = self.locate(emitter)
        if config.policy == "grid":
            log_p = F.log_softmax(output, -1)
            if greedy:
                place = log_p.argmax(-1)
            else:  # inverse of the cumulative distribution at a uniform number
                uniform = 0.5 + 0.5 * torch.erf(noise_R2[:, :1] * math.sqrt(0.5))
                place = (log_p.detach().exp().cumsum(-1) < uniform).sum(-1).clamp(max=config.grid**2 - 1)
            return self.places[place], log_p.gather(1, place[:, None])[:, 0]
        mean = torch.tanh(output) if config.location_mean == "tanh" else output
        gaze, log_prob = normal(mean[:, :2], config.sigma, None if greedy else noise_R2)
        if self.zooms:
            scale, density = normal(mean[:, 2:], self.scale_sigma, None if greedy else noise[:, -1:])
            gaze, log_prob = torch.cat([gaze, scale], 1), log_prob + density
        return gaze.clamp(-1, 1), log_prob

    def locate(self, hidden: Tensor) -> Tensor:
        """What the location policy is made of (R, 2), or (R, places)."""
        return self.location_network(hidden)

    def boxes(self, state: State, height: int, width: int) -> Tensor:
        if self.zoom is None or state.location is None or state.magnification is None:
            return super().boxes(state, height, width)
        return self.zoom.boxes(state.location, state.magnification, height, width)

    def think(self, state: State, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """h_t = Rect(Linear(h_{t−1}) + Linear(g_t)), or an LSTM."""
        output = self.core(torch.cat([state.hidden, features], 1))
        if state.cell is None:
            return F.relu(output), None
        i, f, c, o = output.chunk(4, 1)
        cell = torch.sigmoid(f) * state.cell + torch.sigmoid(i) * torch.tanh(c)
        return torch.sigmoid(o) * torch.tanh(cell), cell

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits (…, K) of the action network."""
        return self.action_network(hidden)

    def stop_logit(self, hidden: Tensor, answer_K: Tensor) -> Tensor:
        """Logit (…) of giving the answer with these logits (…, K) now."""
        emitter = hidden if self.config.policy_gradient == "full" else hidden.detach()
        seen = torch.cat([emitter, sureness(answer_K).to(emitter.dtype)], -1)
        logits: Tensor = Bounded.apply(self.stop_network(seen)[..., 0])
        return logits

    def baseline(self, hidden: Tensor) -> Tensor:
        """Predicted return (…) of a state; never sends gradient into the core."""
        return self.baseline_network(hidden.detach())[..., 0]

    def parts(self, targets: float | None = None) -> list[Part]:
        N, network = self.glimpses, self.glimpse_network
        first = network.what.weight.numel() + network.where.weight.numel()  # read pixels and locations
        moves = 0 if self.config.policy in ("random", "fixed") else N - self.random_start
        full = self.config.policy_gradient == "full"
        ends = max(0, moves - (N - 1)) if full else moves  # where its gradient goes no further
        locate, judge = self.location_network.weight.numel(), self.baseline_network.weight.numel()
        found = [
            Part("glimpse network", first + network.combine.weight.numel(), N, spared=N * first),
            Part("core", self.core.weight.numel(), N),
            Part("location network", locate, moves, spared=ends * locate),
            Part("action network", self.action_network.weight.numel()),
        ]
        judged = N - 1 if self.stops else moves
        if self.stops:
            stop, answer = self.stop_network.weight.numel(), self.action_network.weight.numel()
            cut = 0 if full else judged * stop
            found.append(Part("stop network", stop, judged, cut))
            found.append(Part("answers after other glimpses", answer, N - 1))
        if self.config.baseline == "learned":
            found.append(Part("baseline", judge, judged, spared=judged * judge, training_only=True))
        return found
