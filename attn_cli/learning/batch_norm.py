"""Batch normalisation over the whole batch when each process has a share of it.

`torch.nn.SyncBatchNorm` does this on GPUs only, and counts the images of each process in a host-device sync. Shares are
equal here, so two sums a channel are enough: Σx over all processes, then Σ(x − mean)². Their backward pass is a sum
over the processes, too: with the mean of all gradients this is the gradient of one process with the whole batch.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attn_cli import processes
from attn_cli.errors import Refused


def check_batch(model: nn.Module, name: str, images: int) -> None:
    """Refuse to normalise over a batch of one image: there is nothing to take a variance of."""
    if images < 2 and any(isinstance(part, _BatchNorm) for part in model.modules()):
        raise Refused(
            f"model={name} has batch normalisation, which needs at least 2 images a batch, and there would be "
            f"{images}: use a larger trainer.batch_size or more training images."
        )


class WholeBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d` and `2d` whose statistics in training are those of all processes; same weights and buffers."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, …), got {tuple(input.shape)}")

    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        over = [0, *range(2, input.dim())]
        count = input.numel() // input.shape[1] * processes.size()
        values = input.float()
        shape = (1, -1, *[1] * (input.dim() - 2))
        mean = processes.summed(values.sum(over)) / count  # (C,)
        centred = values - mean.view(shape)
        variance = processes.summed((centred * centred).sum(over)) / count
        with torch.no_grad():
            running_mean, running_var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
            running_mean.lerp_(mean, cast(float, self.momentum))
            running_var.lerp_(variance * (count / max(count - 1, 1)), cast(float, self.momentum))
            cast(Tensor, self.num_batches_tracked).add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


def normalise_together(module: nn.Module) -> None:
    """Replace every batch normalisation in `module`, in place; raises Refused for one that does more than torch's."""
    for name, child in module.named_children():
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
            assert isinstance(child, _BatchNorm)
            whole = WholeBatchNorm(child.num_features, child.eps, cast(float, child.momentum))
            whole.load_state_dict(child.state_dict())
            whole.train(child.training)
            setattr(module, name, whole)
        elif isinstance(child, _BatchNorm):
            raise Refused(
                f"The layer {type(child).__name__} of this network cannot normalise over the batches of several "
                "processes: train it in one process."
            )
        else:
            normalise_together(child)
