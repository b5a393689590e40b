"""What a step does on its device, counted on a CPU by the code that counts on a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from attn_cli.learning.profiling import covered, profile_steps, relative_error, share_of
from attn_cli.learning.training import precision

CPU = torch.device("cpu")


def test_covered_is_the_length_of_a_union() -> None:
    assert covered([]) == 0
    assert covered([(5, 7), (0, 2), (1, 3), (1.5, 2.5), (6, 6.5), (7, 8)]) == 3 + 3


def test_operators_of_a_step() -> None:
    """Two products and a negation: three a step, whatever the number of steps and whatever operators they call."""
    a = torch.rand(64, 64)
    out = torch.empty(64, 64)

    def step() -> None:
        torch.mm(a, a, out=out)
        torch.mm(a, a, out=out)
        out.neg_()

    step()
    assert profile_steps(step, CPU, 2).launches == profile_steps(step, CPU, 5).launches == 3


def test_busy_time_leaves_out_what_the_host_does_alone() -> None:
    a, out = torch.rand(400, 400), torch.empty(400, 400)
    torch.mm(a, a, out=out)
    begin = time.perf_counter()
    torch.mm(a, a, out=out)
    product = time.perf_counter() - begin

    def step() -> None:
        torch.mm(a, a, out=out)
        time.sleep(0.3)

    busy = profile_steps(step, CPU, 2).busy_seconds
    assert 0 < busy < max(0.2, 10 * product)


def test_the_share_of_an_operator_is_of_all_time_that_passes(capfd) -> None:
    a, out = torch.rand(400, 400), torch.empty(400, 400)

    def products() -> None:
        torch.mm(a, a, out=out)

    def mostly_not() -> None:
        products()
        time.sleep(0.2)

    products()
    assert 0.5 < share_of(products, "aten::mm") <= 1
    assert 0 < share_of(mostly_not, "aten::mm", 2) < 0.5
    assert share_of(products, "aten::bmm") == 0
    assert capfd.readouterr().err == ""


def test_relative_error_by_hand() -> None:
    values = [torch.tensor([3.0, 5.0]), None, torch.tensor(0.0)]
    exact = [torch.tensor([3.0, 4.0]), None, torch.tensor(0.0)]
    assert relative_error(values, exact) == pytest.approx(1 / 5)
    assert relative_error(exact, exact) == 0


def test_precision_sets_products_and_convolutions_and_puts_them_back() -> None:
    before = torch.backends.cudnn.allow_tf32
    for name, products, convolutions in (("32", "highest", False), ("tf32", "high", True), ("bf16", "medium", True)):
        with precision(name):
            assert torch.get_float32_matmul_precision() == products
            assert torch.backends.cudnn.allow_tf32 is convolutions
        assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cudnn.allow_tf32 is before
