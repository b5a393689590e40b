"""Averaging the predictions of several paths (DRAM, eq. 14). Legend: M samples, B images, K classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def running_averages(logits_MBK: Tensor, average: str) -> Tensor:
    """Average of the first 1, 2, … M predictions: (M, B, K), up to a factor that the argmax does not see."""
    log_p = F.log_softmax(logits_MBK.float(), -1)
    return log_p.cumsum(0) if average == "log_probabilities" else log_p.exp().cumsum(0)
