"""Several runs of one model, trained as one stacked computation: `trainer.parallel_seeds` and `parallel_lrs`.

A small model leaves a device idle between its many small operations. P members, which differ in seed or learning rate
alone, are given to `torch.vmap`: every operation works on all of them at once, with parameters (P, …), images
(P, B, C, H, W) and noise (P, M, B, N, …). What a member computes is what it would compute alone, up to the order of
additions:

 1. Its weights, batches and noise are keyed by its own seed. Its module stays an ordinary one: the parameters are views
    of the stacked ones, so that validation and checkpoints read them as they are.
 2. One optimiser holds the stacked parameters; with G learning rates it has a group for each, whose parameters are
    views of those of the neighbours in the stack that share it. Adam and SGD work element by element, so it equals P
    optimisers; what is not element-wise, clipping and the guard against numbers that are not finite, has a norm for
    each member.
 3. A member that is not finite is given up: nothing of it reaches the others, which share no number with it.
 4. Its checkpoints are those of a run trained alone, and such a run continues from them.
 5. Global random generators are not used in training. What draws from them (dropout) or changes buffers (batch
    normalisation) is refused, as are sequences that stop early: their shapes depend on what was read.

Legend: P members, G learning rates, M samples, B batch, N glimpses, n parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call

from attn_cli.config.arguments import pasted
from attn_cli.errors import Refused
from attn_cli.learning.compiling import compiled
from attn_cli.learning.guards import Checkpoints, FiniteGuard, Flags
from attn_cli.learning.learner import Learner
from attn_cli.learning.loader import EpochBatches
from attn_cli.models.model import GlimpseModel
from attn_cli.models.rollout import draw_noise
from attn_cli.runs import Run


class Stack(nn.Module):
    """The parameters of P models, each as one (P, …); those of the models become views of it.

    `parts`: the same parameters for an optimiser, cut along P into `groups` of as many members each.
    """

    def __init__(self, models: list[GlimpseModel], groups: int):
        super().__init__()
        self.names = [f"model.{name}" for name, _ in models[0].named_parameters()]  # as a learner has them
        self.stacked = nn.ParameterList()
        for name, _ in models[0].named_parameters():
            own = [model.get_parameter(name) for model in models]
            whole = nn.Parameter(torch.stack([p.detach() for p in own]), requires_grad=own[0].requires_grad)
            for parameter, part in zip(own, whole.detach(), strict=True):
                parameter.data = part
            self.stacked.append(whole)
        self.parts = [list(self.stacked)]
        if groups > 1:
            cut = [whole.detach().chunk(groups) for whole in self.stacked]
            self.parts = [
                [nn.Parameter(p, whole.requires_grad) for p, whole in zip(part, self.stacked, strict=True)]
                for part in zip(*cut, strict=True)
            ]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for part in self.parts:  # not parameters of the module: views, whose gradients are views, too
            for parameter in part:
                parameter.grad = None

    def hand_out_gradients(self) -> None:
        """Let the parts have their shares of the gradients, which stay one tensor."""
        if len(self.parts) == 1:
            return
        for i, whole in enumerate(self.stacked):
            if whole.grad is not None:
                for part, gradient in zip(self.parts, whole.grad.chunk(len(self.parts)), strict=True):
                    part[i].grad = gradient

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The stacked parameters under the names that they have in a learner."""
        return dict(zip(self.names, self.stacked, strict=True))


class Objective(nn.Module):
    """What a learner minimises, as the forward pass of a module whose parameters `functional_call` can exchange."""

    def __init__(self, learner: Learner):
        super().__init__()
        self.model, self.function = learner.model, learner.loss_and_row

    def forward(self, images: Tensor, noise: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(images, noise, labels)


class ParallelBatches:
    """The batches of each member, stacked: images (P, B, C, H, W), labels (P, B, …), epoch, global step."""

    def __init__(self, members: list[EpochBatches]):
        self.members = members

    def __len__(self) -> int:
        return len(self.members[0])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int, int]]:
        for batches in zip(*self.members, strict=True):
            images, labels, epochs, steps = zip(*batches, strict=True)
            yield torch.stack(images), torch.stack(labels), epochs[0], steps[0]


class MemberGuard(FiniteGuard):
    """`FiniteGuard` for each member: clips its gradient, and gives it up where it is not finite."""

    def __init__(self, clip: float | None, give_up: Callable[[int, Refused], None]):
        super().__init__(clip)
        self.give_up = give_up

    def watch(self, module: torch.nn.Module) -> None:
        stack = cast(Stack, module.model)
        self._parameters = [(name, p) for name, p in stack.parameters_by_name().items() if p.requires_grad]
        self._flags = None

    def check(self, loss: Tensor, optimizer: torch.optim.Optimizer, step: int) -> None:
        """After backward: `loss` (P,). On a CPU the flags are read at every step."""
        gradients = [gradient for _, p in self._parameters if (gradient := p.grad) is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])  # (n, P)
        total = torch.linalg.vector_norm(norms, dim=0)
        if self._flags is None:
            self._flags = Flags(self._names(), step, loss.device, tuple(loss.shape))
        self._flags.update(loss, total, norms)
        on_cpu = loss.device.type == "cpu"
        if on_cpu or self._flags.unread >= self.read_every:
            self.read()
        if self.clip is None or (on_cpu and not (total > self.clip).any()):
            return
        scale = ((total + 1e-6) / self.clip).clamp(min=1.0).float()  # as in a run alone
        for gradient in gradients:
            gradient.div_(scale.view(-1, *[1] * (gradient.dim() - 1)))

    def read(self) -> None:
        """Give up whom the flags name: one sync."""
        if self._flags is not None and self._flags.unread:
            for number, refused in self._flags.read().items():
                self.give_up(number, refused)


class ParallelLearner(Learner):
    """Trains its members: learners of one configuration but for seed and learning rate, whose models lie on the device.
    As many members have one rate as have another, and they follow one another.

    `states` are the global random states in which each member would have begun to train alone. `on_failure` is called
    with the number of a member that is given up and the reason; with the last one, Refused is raised. The listeners of
    a member get its row of an epoch, those of this learner the mean over the members. The seconds of a member are those
    of all.
    """

    finite: MemberGuard

    def __init__(self, members: Sequence[Learner], states: Sequence[dict[str, Any]], compile_step: bool = False):
        first = members[0]
        self.rates = list(dict.fromkeys(member.config.optimizer.lr for member in members))
        stack = Stack([member.model for member in members], len(self.rates))
        super().__init__(cast(GlimpseModel, stack), first.config, first.data)
        self.members, self.states, self.compile_step = tuple(members), states, compile_step
        self.finite = MemberGuard(first.config.optimizer.clip, self.give_up)
        self.failed: dict[int, Refused] = {}
        self.on_failure: Callable[[int, Refused], None] = lambda number, refused: None
        self.saving = 0  # the member whose checkpoint is being written
        self.totals = torch.zeros(len(members), *self.totals.shape, device=next(first.model.parameters()).device)
        for member, totals in zip(members, self.totals, strict=True):
            member.totals = totals
        objective = Objective(first)
        buffers = dict(objective.named_buffers())  # the same for all

        def alone(parameters: dict[str, nn.Parameter], images: Tensor, noise: Tensor, labels: Tensor) -> Any:
            return functional_call(objective, {**parameters, **buffers}, (images, noise, labels))

        self.together = torch.vmap(alone)
        self._step = self.together
        if compile_step:
            self._step = compiled(self.together, first.config.trainer.compile == "graph")

    @property
    def going(self) -> list[int]:
        """The members that have not been given up."""
        return [number for number in range(len(self.members)) if number not in self.failed]

    def give_up(self, number: int, refused: Refused) -> None:
        if number in self.failed:
            return
        self.failed[number] = refused
        self.on_failure(number, refused)
        if not self.going:
            raise Refused(f"None of the {len(self.members)} runs is left. The last one: {refused}")

    def try_out(self) -> None:
        """Two images through the stack; raises Refused if the model cannot be stacked."""
        sentence = (
            f"model={self.config.model.name} as it is set here cannot be trained with trainer.parallel_seeds or "
            "trainer.parallel_lrs: dropout, batch normalisation, a mean image, changes between epochs and sequences "
            "that stop early need one run after the other; use -m with a list after seed= or optimizer.lr=."
        )
        model = self.members[0].model
        kept = model.state_dict().keys() - dict(model.named_parameters()).keys()  # beside the weights, for each its own
        if kept or any(member.changes_between_epochs for member in self.members):
            raise Refused(sentence)
        images, labels, _, _ = next(iter(self.batches()))
        images, labels = images[:, :2], labels[:, :2]
        try:
            with torch.no_grad():
                self.together(self.stack.parameters_by_name(), images, self.noise(0, images), labels)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch's word for what it cannot map over members
            raise Refused(sentence) from error

    @property
    def stack(self) -> Stack:
        return cast(Stack, self.model)

    def batches(self, rank: int = 0, world_size: int = 1) -> ParallelBatches:
        return ParallelBatches([member.batches(rank, world_size) for member in self.members])

    def noise(self, step: int, images: Tensor) -> Tensor:
        """(P, M, B, N, …) for images (P, B, C, H, W), each member's from its own seed."""
        each = []
        for member in self.members:
            shape = (self.samples, images.shape[1], member.model.steps)
            each.append(draw_noise(member.config.seed, step, shape, images.device, member.model.noises))
        return torch.stack(each)

    def loss(self, batch: tuple[Tensor, Tensor, int, int]) -> Tensor:
        """The losses (P,) of one batch of each member."""
        images, labels, _, step = batch
        losses, rows = self._step(self.stack.parameters_by_name(), images, self.noise(step, images), labels)
        self.totals += rows
        for member in self.members:
            member.images += images.shape[1]
        return losses

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": part, "lr": rate} for part, rate in zip(self.stack.parts, self.rates, strict=True)]

    def group(self, number: int) -> int:
        """Which of the optimiser's groups has a member."""
        return number * len(self.rates) // len(self.members)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().manual_backward(loss.sum(), *args, **kwargs)
        self.stack.hand_out_gradients()

    def close_epoch(self, done: int, step: int, rate: float) -> dict[str, Any]:
        rows = []
        for number in self.going:
            member, group = self.members[number], self._optimiser.param_groups[self.group(number)]
            member.seconds = self.seconds
            rows.append(member.close_epoch(done, step, group["lr"]))
            for listener in member.listeners:
                listener(rows[-1])
        means = {key: None if value is None else fmean(row[key] for row in rows) for key, value in rows[0].items()}
        return {**means, "epoch": done, "step": step}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make it the checkpoint of one member."""
        super().on_save_checkpoint(checkpoint)
        number, member = self.saving, self.members[self.saving]
        member.seconds = self.seconds
        checkpoint["state_dict"] = member.state_dict()
        group, place = self.group(number), number % (len(self.members) // len(self.rates))
        checkpoint["optimizer_states"] = [_part(state, group, place) for state in checkpoint["optimizer_states"]]
        checkpoint["lr_schedulers"] = [_of_group(state, group) for state in checkpoint["lr_schedulers"]]
        checkpoint["learner"] = member.state()


def _part(state: dict[str, Any], group: int, place: int) -> dict[str, Any]:
    """The part of an optimiser's state that belongs to the member at a place in a group, as in the optimiser of a run
    alone; scalars, such as Adam's count of steps, are those of all.
    """
    own = state["param_groups"][group]
    moments = {
        index: {
            key: value[place] if isinstance(value, Tensor) and value.dim() else value
            for key, value in state["state"][number].items()
        }
        for index, number in enumerate(own["params"])
        if number in state["state"]
    }
    return {"state": moments, "param_groups": [{**own, "params": list(range(len(own["params"])))}]}


def _of_group(state: dict[str, Any], group: int) -> dict[str, Any]:
    """A schedule's state with what belongs to one group alone."""
    return {**state, **{key: [state[key][group]] for key in ("base_lrs", "_last_lr", "lr_lambdas") if key in state}}


class MemberCheckpoints(Checkpoints):
    """`Checkpoints` of each member that goes on, in its own folder; all at the same steps, but for the best ones."""

    def __init__(self, learner: ParallelLearner, folders: Sequence[Path], every: int = 1, seconds: float | None = None):
        super().__init__(folders[0], every, seconds, learner.finite)
        self.learner = learner
        self.parts = [Checkpoints(folder) for folder in folders]
        self.finished: set[int] = set()  # members that there is nothing to continue of

    def _write(self, trainer: pl.Trainer, name: str, keep: bool = False) -> None:
        self.learner.finite.read()
        for number in self.learner.going:
            self.learner.saving = number
            self.parts[number]._write(trainer, name, keep)

    def _save_best(self, trainer: pl.Trainer, learner: Any) -> None:
        learner.finite.read()
        for number in learner.going:
            learner.saving = number
            self.parts[number]._save_best(trainer, learner.members[number])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        number, batches = self.learner.saving, cast(ParallelBatches, trainer.train_dataloader)
        position = batches.members[number].state_dict()
        best, random = self.parts[number].best, self.learner.states[number]
        checkpoint["attn"] = {"best": best, "batches": position, "random": random, "others": []}
        checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [position]

    def advice(self) -> str:
        parts = [self.parts[number] for number in self.learner.going if number not in self.finished]
        going = [Run(part.folder.parent) for part in parts]
        if any(run.resumable for run in going):
            commands = " and ".join(f"`attn train {pasted('resume', run.path)}`" for run in going)
            return f"continue with {commands}, one after the other"
        return "no run has a checkpoint to continue from, start anew"
