"""RAM that plays a game. Mnih, Heess, Graves, Kavukcuoglu, 2014 (arXiv 1406.6247), section 4.2.

Implemented: the network of ram.py with an LSTM core, which looks at one glimpse of each frame and then acts; locations
and actions are both learned by REINFORCE from the final reward, with a baseline that depends on the state.

Departures from the paper, and choices that it leaves open, besides those of ram.py:
 1. The first location is learned, too (`first: learned` in ram.py), so that nothing but the game is left to chance when
    the mean location and the likeliest action are taken.
 2. Coarse patches have the sums of the pixels that they cover, not the means: the ball is a single pixel, and would
    fade to a sixteenth on the coarsest of three scales.
 3. The network is not told which action it took.
 4. The location network's output is multiplied by `location_scale`. Adam moves every weight as far however faint the
    signal, and all the weights of a linear map move its output alike: without it the gaze wandered into a corner
    within a few hundred updates, where the screen is out of sight and nothing calls it back.
 5. `policy: fixed` and `random` are for comparison; with `glimpses.size=24 scales=1 model.policy=fixed` the same
    network sees the whole screen.
 6. Beside the game's reward the entropy of the actions is one (`entropy_weight`), REINFORCE counts for less at
    locations than at actions (`location_weight`), and the reward can be discounted (`discount`; the experiment: 0.95).

Legend: as in ram.py; R games, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attn_cli.config import schema
from attn_cli.games.catch import Catch
from attn_cli.models.parts import Part
from attn_cli.models.ram import RAM


class RamCatch(RAM):
    covered: Tensor

    plays = True
    noises = 3  # two for the location, one for the action
    stochastic = False  # a game has no answers that could be averaged

    def __init__(
        self,
        config: schema.RamCatch,
        glimpses: schema.Glimpses,
        scales: schema.Scales,
        *,
        game: type[Catch],
        channels: int,
        classes: int,
        background: int = 0,
    ):
        super().__init__(config, glimpses, scales, channels=channels, classes=classes, background=background)
        covered = 4.0 ** torch.arange(scales.count)  # pixels of the screen behind one of a patch
        self.register_buffer("covered", covered.view(-1, 1, 1, 1), persistent=False)
        self.game, self.scale = game, config.location_scale
        self.glimpses = game.frames
        self.stochastic = False

    def sense(self, patches: Tensor) -> Tensor:
        return patches * self.covered

    def locate(self, hidden: Tensor) -> Tensor:
        return self.scale * super().locate(hidden)

    def act(self, logits_RA: Tensor, noise_R3: Tensor, greedy: bool) -> Tensor:
        """int64 (R,): an action drawn from its distribution with the third number, or the likeliest."""
        if greedy:
            return logits_RA.argmax(-1)
        uniform = 0.5 + 0.5 * torch.erf(noise_R3[:, 2:] * 0.5**0.5)
        below = logits_RA.detach().softmax(-1).cumsum(-1) < uniform
        return below.sum(-1).clamp(max=logits_RA.shape[-1] - 1)

    def parts(self, targets: float | None = None) -> list[Part]:
        """Of one game. In training the baseline judges the state that acted and, where locations are learned, the one
        that chose the location.
        """
        N, network = self.glimpses, self.glimpse_network
        learned = self.config.policy not in ("random", "fixed")
        first = network.what.weight.numel() + network.where.weight.numel()  # read pixels and locations
        judge, judged = self.baseline_network.weight.numel(), N * (2 if learned else 1)
        found = [
            Part("glimpse network", first + network.combine.weight.numel(), N, spared=N * first),
            Part("core", self.core.weight.numel(), N),
            Part("action network", self.action_network.weight.numel(), N),
            Part("baseline", judge, judged, spared=judged * judge, training_only=True),
        ]
        return [*found, Part("location network", self.location_network.weight.numel(), N)] if learned else found
