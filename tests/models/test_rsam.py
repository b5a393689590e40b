"""RSAM against its numbers and its wiring: parameters, masks, feedback, answers after every glimpse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from attn_cli.config.model_sections import ConvNet, Rsam
from attn_cli.config.schema import Glimpses, Scales
from attn_cli.errors import Refused
from attn_cli.learning.objectives import supervised_steps
from attn_cli.models.rollout import draw_noise, rollout
from attn_cli.models.rsam import RSAM

TARGETS = torch.tensor([3, 1, 9, 0, 5, 5])


def make(glimpses: int = 4, **changes) -> RSAM:
    torch.manual_seed(0)
    sizes = {"channels": 3, "classes": 10, "height": 32, "width": 32}
    return RSAM(Rsam(**changes), Glimpses(glimpses, 8), Scales(1), **sizes)


def images(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def run(model: RSAM, record: bool = False):
    return rollout(model, images(), draw_noise(0, 0, (1, 6, model.steps)), record=record)


def test_parameters_of_the_authors_model():
    assert sum(p.numel() for p in make().parameters()) == 1_340_958


BACKBONE = ConvNet(
    filters=(4, 6), kernels=(5, 3), strides=(1, 2), pools=(2, 1), pool_padding=0, hidden=(12,), dropout=0.0
)


@pytest.mark.parametrize("changes", [{}, {"feedback": False}, {"down_sample": "fc"}, {"backbone": BACKBONE}])
def test_multiply_adds_against_torch(changes):
    model = make(glimpses=3, **changes)
    with FlopCounterMode(display=False) as counter:
        run(model)
    assert counter.get_total_flops() / 2 == 6 * model.multiply_adds()


@pytest.mark.parametrize(
    "changes", [{}, {"feedback": False}, {"down_sample": "fc"}, {"features_norm": True}, {"backbone": BACKBONE}]
)
def test_gradients_reach_every_part(changes):
    model = make(**changes)
    logits, trace = run(model)
    supervised_steps(trace.step_logits, logits, TARGETS).total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.norm() > 0, name


def test_answers_are_averaged_as_asked():
    logits, trace = run(make().eval())
    mean = F.softmax(trace.step_logits, -1).mean(2)
    assert torch.allclose(F.softmax(logits, -1), mean, atol=1e-6)
    logits, trace = run(make(average="log_probabilities").eval())
    assert torch.allclose(logits, F.log_softmax(trace.step_logits, -1).sum(2), atol=1e-5)
    assert (run(make(relu_logits=True))[1].step_logits >= 0).all()


def test_every_answer_counts():
    """The sum over the glimpses of the cross-entropy; errors are those of the averaged answer."""
    logits, trace = run(make())
    losses = supervised_steps(trace.step_logits, logits, TARGETS)
    wanted = sum(F.cross_entropy(trace.step_logits[0, :, t], TARGETS) for t in range(4))
    assert losses.total.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert losses.error.item() == pytest.approx((logits[0].argmax(-1) != TARGETS).float().mean().item())


def test_the_mask_is_what_the_glimpse_network_sees_through():
    """Where the mask is 0 the image does not matter; without a bright place it matters nowhere."""
    model = make().eval()
    state = model.start(images(), 1)
    with torch.no_grad():
        model.mask[0].weight.zero_()
        model.mask[0].bias.fill_(-1.0)
        model.mask[0].bias.view(32, 32)[8:16, 4:12] = 2.0
        seen = model.step(state, torch.zeros(6, 2))
        assert (seen.mask > 0).sum((1, 2)).tolist() == [64] * 6 and (seen.mask[:, 8:16, 4:12] > 0).all()
        outside = state.pixels.clone()
        outside[:, :, 20:] += 1.0
        again = model.step(type(state)(**{**vars(state), "pixels": outside}), torch.zeros(6, 2))
        assert torch.equal(seen.hidden, again.hidden)
        inside = state.pixels.clone()
        inside[:, :, 8:16, 4:12] += 1.0
        other = model.step(type(state)(**{**vars(state), "pixels": inside}), torch.zeros(6, 2))
        assert not torch.allclose(seen.hidden, other.hidden)


def test_feedback_carries_the_glimpse_to_the_next_mask():
    """Without it the masks never depend on what was seen through them."""
    for feedback in (True, False):
        model = make(feedback=feedback).eval()
        start = model.start(images(), 1)
        first = model.step(start, torch.zeros(6, 2))
        blind = model.step(type(start)(**{**vars(start), "pixels": start.pixels * 0}), torch.zeros(6, 2))
        after, after_blind = (model.step(s, torch.zeros(6, 2)).mask for s in (first, blind))
        assert torch.equal(after, after_blind) != feedback


@pytest.mark.parametrize("norm", [False, True])
def test_two_glimpses_by_hand(norm):
    """gaps.md: C0 is stepped twice with the same weights, on the features and on C1's hidden state."""
    model = make(glimpses=2, features_norm=norm).eval()
    x = images() / 127.5 - 1
    with torch.no_grad():
        if norm:
            model.down_sample[3].weight.fill_(2.0)
            model.down_sample[3].running_mean.fill_(-0.1)
        steps = run(model)[1].step_logits[0]  # (B, N, K)
        features = model.down_sample[:3](x)
        if norm:
            features = F.relu(2 * (features + 0.1) / (1 + 1e-5) ** 0.5)
        c0 = c1 = (torch.zeros(6, 256), torch.zeros(6, 256))
        for n in range(2):
            c0 = model.context(features, c0)
            seen = model.look(x * model.mask(c0[0]).view(6, 1, 32, 32))
            c1 = model.memory(seen.flatten(1), c1)
            assert torch.allclose(steps[:, n], model.classifier(c1[0]), atol=1e-5)
            c0 = model.context(c1[0], c0)


def test_the_features_of_the_image_are_worked_out_once():
    """Once an image or once a glimpse: the same answers."""
    model, counted = make(), []
    model.down_sample.register_forward_hook(lambda *_: counted.append(1))
    once = run(model)[0]
    assert len(counted) == 1
    again = make()
    step = again.step

    def refreshed(state, noise, greedy=False):
        fresh = type(state)(**{**vars(state), "features": again.down_sample(state.pixels)})
        return step(fresh, noise, greedy)

    again.step = refreshed
    assert torch.allclose(run(again)[0], once, atol=1e-5)


def test_a_convnet_as_the_glimpse_network():
    """Its layers but the last read the masked image, and its features enter C1."""
    model = make(backbone=BACKBONE).eval()
    assert model.memory.input_size == 12 and not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.look.modules())
    state = model.start(images(), 1)
    seen = model.step(state, torch.zeros(6, 2))
    hidden, _ = model.memory(model.look(state.pixels * seen.mask[:, None]), (state.hidden, state.cell))
    assert torch.allclose(seen.hidden, hidden, atol=1e-6)
    with pytest.raises(Refused, match="model.backbone=rsam is no ConvNet"):
        make(backbone=Rsam())


def test_masks_are_recorded():
    trace = run(make().eval(), record=True)[1]
    assert trace.masks.shape == (1, 6, 4, 32, 32) and trace.masks.min() == 0
    shown = images()[2].float() / 255 * trace.masks[0, 2, 3]
    assert torch.allclose(trace.patches[0, 2, 3, 0], shown.clamp(max=1), atol=1e-5)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(Refused, match="model.hidden=100 must be 256"):
        make(hidden=100)
    with pytest.raises(Refused, match="too small"):
        sizes = {"channels": 3, "classes": 10, "height": 7, "width": 32}
        RSAM(Rsam(), Glimpses(2, 8), Scales(1), **sizes)
