"""Soft RAM against its equations: order of the layers, where gradients arrive, the grid's limits, noise."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attn_cli.config.schema import Glimpses, Scales, SoftRam
from attn_cli.errors import Refused
from attn_cli.inference.monte_carlo import evaluate
from attn_cli.learning.objectives import repulsion, supervised, supervised_steps
from attn_cli.models.rollout import draw_noise, rollout
from attn_cli.models.soft_ram import GRU, SoftRAM

TINY = {"filters": (2, 2, 4), "features": 12, "hidden": 10}
TARGETS = torch.tensor([3, 1, 9, 0])


def make(glimpses: int = 3, length: int = 0, scales: int = 1, height: int = 40, width: int = 30, **changes) -> SoftRAM:
    torch.manual_seed(0)
    config = SoftRam(**{**TINY, **changes})
    sizes = {"channels": 1, "classes": 10, "length": length, "height": height, "width": width}
    return SoftRAM(config, Glimpses(glimpses, 12), Scales(scales), **sizes)


def images(count: int = 4, height: int = 40, width: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, height, width), dtype=torch.uint8, generator=generator)


def run(model: SoftRAM, samples: int = 1, greedy: bool = False, record: bool = False, pictures=None):
    seen = images() if pictures is None else pictures
    noise = draw_noise(0, 0, (samples, len(seen), model.steps), numbers=model.noises)
    return rollout(model, seen, noise, greedy=greedy, record=record)


def test_the_gru_is_torchs():
    torch.manual_seed(0)
    ours, theirs = GRU(5, 7, 0.0), torch.nn.GRUCell(5, 7)
    with torch.no_grad():
        theirs.weight_ih.copy_(ours.inputs.weight)
        theirs.weight_hh.copy_(ours.memory.weight)
        theirs.bias_ih.copy_(ours.inputs.bias)
        theirs.bias_hh.copy_(ours.memory.bias)
    x, h = torch.randn(3, 5), torch.randn(3, 7)
    assert torch.allclose(ours(x, h), theirs(x, h), atol=1e-6)


def test_recurrent_dropout_never_falls_on_memory():
    """Where the candidate is dropped, z·h is what is left; the rest of the step is doubled."""
    torch.manual_seed(0)
    layer = GRU(5, 7, 0.5)
    x, h = torch.randn(64, 5), torch.randn(64, 7)
    memory = torch.sigmoid(layer.inputs(x)[:, 7:14] + layer.memory(h)[:, 7:14]) * h
    kept, dropped = layer.eval()(x, h), layer.train()(x, h)
    alone, doubled = (torch.isclose(dropped, memory + share * (kept - memory), atol=1e-6) for share in (0, 2))
    assert (alone | doubled).all() and 0.3 < alone.float().mean() < 0.7


def test_dropout_falls_on_what_the_glimpse_network_gives():
    """In training alone, and on nothing else."""
    model = make(dropout=0.5)
    assert not torch.equal(run(model)[0], run(model)[0])
    model.eval()
    assert torch.equal(run(model)[0], run(model)[0])
    model.train()
    model.glimpse_dropout.p = 0.0
    assert torch.equal(run(model)[0], run(model)[0])


@pytest.mark.parametrize("context", ["conv", "none"])
def test_the_first_glimpse_follows_the_image_only_through_the_context(context):
    """Layer 2 comes before layer 1 (eqs. 1 to 3): with a context even the first grid depends on the image."""
    _, trace = run(make(context=context), greedy=True)
    spread = trace.locations[0, :, 0].std(0).max()
    assert spread > 1e-6 if context == "conv" else spread < 1e-8
    assert trace.locations[0, :, 1].std(0).max() > 1e-6


VARIANTS = (
    {},
    {"glimpse": "conv"},
    {"centre": "relative", "limit": 0.5},
    {"glimpse": "conv", "filters": (2, 2, 4, 5, 6)},
    {"layers": 1},
    {"layers": 1, "context": "none"},
    {"answers": "every"},
)


@pytest.mark.parametrize("changes", VARIANTS)
def test_gradients_reach_every_part(changes):
    model = make(**changes)
    logits, _ = run(model)
    supervised(logits, TARGETS).total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.norm() > 0, name


@pytest.mark.parametrize("length", [0, 2])
@pytest.mark.parametrize("changes", [*VARIANTS, {"context": "none"}, {"answer_from": "glimpse"}])
def test_multiply_adds_against_torch(changes, length):
    """Torch does not see into the grid's products, which are added by hand: for each glimpse two, H·W·g and H·g·g."""
    model = make(length=length, **changes)
    grid = model.steps * (40 * 30 * 12 + 40 * 12 * 12)
    with FlopCounterMode(display=False) as counter:
        run(model)
    # A sequence whose answers after every glimpse count classifies the last of each target twice in a rollout.
    twice = model.targets * model.classification_network.adds if length and model.every_step else 0
    assert counter.get_total_flops() / 2 == 4 * (model.multiply_adds() - grid + twice)


def test_no_grid_leaves_the_image_or_its_limit():
    model = make(glimpses=6, centre="relative", limit=0.25, noise=0.0)
    with torch.no_grad():
        model.extraction.bias.copy_(torch.tensor([0.7, -0.9, 9.0, 9.0, 0.0, 0.0]))
    _, trace = run(model, record=True)
    assert (trace.locations.abs() <= 1).all() and (trace.locations[0, :, -1].abs() == 1).all()
    size = trace.boxes[..., 2:] - trace.boxes[..., :2]
    spans = torch.tensor([0.25 * 29, 0.25 * 39]) * 12 / 11  # eleven strides from first to last filter, and half a one
    assert torch.allclose(size, spans.expand_as(size), rtol=1e-3)
    assert torch.allclose(trace.shifts[0, :, 0], torch.tensor([0.7, -0.9]).expand(4, 2), atol=0.2)


@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_grid_has_strides_of_its_own_across_and_down(limit):
    model = make(limit=limit, noise=0.0)
    with torch.no_grad():
        model.extraction.weight.zero_()
        model.extraction.bias[2:4] = torch.tensor([-2.0, -1.0])
    _, trace = run(model, record=True)
    shares = (trace.boxes[..., 2:] - trace.boxes[..., :2]) * 11 / 12 / torch.tensor([29.0, 39.0])
    said = torch.tensor([-2.0, -1.0])
    wanted = said.exp() if limit is None else limit * said.sigmoid()
    assert torch.allclose(shares, wanted.expand_as(shares), rtol=1e-4)


def test_nor_does_noise_widen_it_beyond_the_limit():
    model = make(glimpses=6, limit=0.25, noise=0.5)
    with torch.no_grad():
        model.extraction.bias[2:4] = 9.0
    _, trace = run(model, record=True, greedy=False)
    size = trace.boxes[..., 2:] - trace.boxes[..., :2]
    spans = torch.tensor([0.25 * 29, 0.25 * 39]) * 12 / 11
    assert (size <= spans + 1e-4).all() and torch.isclose(size, spans).any() and (size < 0.9 * spans).any()


@pytest.mark.parametrize("limit", [None, 0.5, 1.0])
def test_the_first_filters_are_about_half_a_stride_wide(limit):
    model = make(limit=limit, noise=0.0, height=200, width=200)
    model.extraction.weight.data.zero_()
    state = model.step(model.start(torch.zeros(2, 1, 200, 200, dtype=torch.uint8), 1), torch.zeros(2, 4))
    assert torch.allclose(state.grid.sigma[:, None] / state.grid.stride, torch.tensor(0.5), atol=0.07)


def test_the_mean_image_is_subtracted():
    """From what the grid sees and from what the context network sees; 128 is one then."""
    torch.manual_seed(0)
    mean = torch.randint(0, 100, (1, 40, 30), dtype=torch.uint8)
    model, plain = make(mean_image=True, noise=0.0), make(noise=0.0)
    plain.load_state_dict(model.state_dict(), strict=False)
    model.prepare(lambda: [mean[None] + 5, mean.repeat(3, 1, 1, 1) + 1])  # the mean of four images: 2 more
    assert torch.equal(model.mean_image, mean + 2.0)
    model.prepare(lambda: [mean.repeat(2, 1, 1, 1)])
    assert torch.equal(model.mean_image, mean.float())
    seen = []
    for net, images in ((model, mean + 128), (plain, torch.full_like(mean, 255))):
        net.context_network.register_forward_hook(lambda _, inputs, output: seen.append(output))
        seen.append(net.step(net.start(images[None], 1), torch.zeros(1, 4)).seen)
    assert torch.allclose(seen[0], seen[2], atol=1e-5) and torch.allclose(seen[1], seen[3], atol=1e-5)
    blank = model.step(model.start(mean[None], 1), torch.zeros(1, 4))
    assert blank.seen.abs().max() < 1e-6 < model.patches(blank).max()  # pictures show the image
    with pytest.raises(Refused, match="mean image of this model is of 40×30, the images are of 30×40"):
        model.start(mean[None].transpose(2, 3), 1)


def test_without_training_the_grid_covers_the_image():
    model = make(noise=0.0)
    with torch.no_grad():
        model.extraction.weight.zero_()
    _, trace = run(model, record=True)
    x0, y0, x1, y1 = trace.boxes[0, 0, 0, 0].tolist()
    assert (x0, x1) == pytest.approx((15 - 29 * 6 / 11, 15 + 29 * 6 / 11))
    assert (y0, y1) == pytest.approx((20 - 39 * 6 / 11, 20 + 39 * 6 / 11))


def test_noise_moves_sampled_paths_and_not_the_mean_path():
    model = make()
    _, mean = run(model, samples=2, greedy=True)
    _, sampled = run(model, samples=64)
    assert torch.allclose(mean.locations[0], mean.locations[1], atol=1e-6)
    off = (sampled.locations[:, :, 0] - mean.locations[0, :, 0]).abs()
    assert 0.08 < off.max() <= 0.1 + 1e-6 and 0.04 < off.mean() < 0.06  # uniform in ±0.1
    assert not make(noise=0.0).stochastic and make().stochastic


def test_noise_of_strides_is_apart_from_that_of_centres():
    model = make(glimpses=1)
    (_, mean), (_, sampled) = run(model, samples=2, greedy=True, record=True), run(model, samples=256, record=True)
    size, usual = (trace.boxes[..., 2:] - trace.boxes[..., :2] for trace in (sampled, mean))
    stretched = (size / usual[:1] - 1).flatten(0, 3)  # (R, 2)
    assert 0.09 < stretched.abs().max() <= 0.1 + 1e-5 and 0.04 < stretched.abs().mean() < 0.06
    moved = (sampled.locations - mean.locations[:1]).flatten(0, 2)
    assert torch.corrcoef(torch.cat([moved, stretched], 1).T).triu(1).abs().max() < 0.15


def test_repulsion_by_hand():
    shift = torch.tensor([[[0.0, 0.0], [0.3, 0.4]]])
    assert repulsion(shift, 0.1, 0.1).item() == pytest.approx(0.1 * (1 + 2.718281828**-2.5) / 2)


def test_reads_sequences_in_both_directions():
    model = make(length=2)
    labels = torch.tensor([[3, 5, 10], [1, 10, -1], [10, -1, -1], [0, 0, 10]])
    assert torch.equal(model.order(labels), labels)
    assert make(length=2, reader="backward").order(labels)[0].tolist() == [5, 3, 10]
    found = evaluate(model, images(), labels, samples=2, greedy=False)
    assert found.most_glimpses == 9 and 3 <= found.mean_glimpses <= 9


def test_five_convolutions():
    """The fourth and the fifth keep the 4×4 map that the first three leave of a 12×12 glimpse."""
    model = make(glimpse="conv", filters=(2, 2, 4, 5, 6))
    assert [tuple(c.weight.shape) for c in model.convolutions if isinstance(c, torch.nn.Conv2d)] == [
        *((2, 1, 5, 5), (2, 2, 3, 3), (4, 2, 3, 3), (5, 4, 3, 3), (6, 5, 3, 3))
    ]
    assert model.glimpse_layer.in_features == 6 * 4 * 4
    assert len(model.context_network.convolutions) == len(make().context_network.convolutions)


def test_a_single_layer_reads_its_own_state():
    model = make(layers=1)
    _, trace = run(model, greedy=True)
    assert model.upper is None
    assert trace.locations[0, :, 0].std(0).max() < 1e-8 < trace.locations[0, :, 1].std(0).max()
    one, two = (sum(p.numel() for p in make(layers=n).parameters()) for n in (1, 2))
    assert two - one == 2 * 3 * 10 * (10 + 1)  # a GRU from 10 to 10
    # The context reaches the only layer: by it alone the second region differs between images of one glimpse.
    with torch.no_grad():
        model.glimpse_layer.weight.zero_()
    _, blind = run(model, greedy=True)
    assert blind.locations[0, :, 1].std(0).max() > 1e-6


def test_answers_after_every_glimpse():
    """The loss is the sum over glimpses, for a sequence each with the label of its target; the last answer is given."""
    for length, labels in ((0, TARGETS), (1, torch.tensor([[3, 10], [10, -1], [9, 10], [0, 10]]))):
        model = make(length=length, answers="every", noise=0.0)
        logits, trace = run(model)
        steps = trace.step_logits.detach().log_softmax(-1)[0]
        losses = supervised_steps(trace.step_logits, logits, labels)
        by_hand, wrong = 0.0, 0
        for b, image in enumerate(labels.view(4, -1).tolist()):
            right = True
            for s, label in enumerate(image):
                if label >= 0:
                    by_hand -= sum(float(steps[b, 3 * s + t, label]) for t in range(3)) / 4
                    right &= int(steps[b, 3 * s + 2].argmax()) == label
            wrong += not right
        assert losses.total.item() == pytest.approx(by_hand, rel=1e-5)
        assert losses.error.item() == wrong / 4
        assert torch.allclose(logits.view(4, -1, steps.shape[-1]), trace.step_logits[0, :, 2::3], atol=1e-6)


@pytest.mark.parametrize("length", [0, 2])  # of sequences, as in the lessons of pairs
def test_answers_from_the_glimpse_alone(length):
    """What was seen before does not matter to the answer but through where it made the model look."""
    model = make(answer_from="glimpse", answers="every", noise=0.0, length=length)
    with torch.no_grad():
        model.extraction.weight.zero_()
    _, trace = run(model, record=True)
    assert torch.allclose(trace.step_logits, trace.step_logits[:, :, :1].expand_as(trace.step_logits), atol=1e-6)
    _, usual = run(make(noise=0.0, length=length), record=True)
    assert not torch.allclose(usual.step_logits[0, :, 0], usual.step_logits[0, :, 2])


def test_more_scales_are_refused():
    with pytest.raises(Refused, match="looks at one scale"):
        make(scales=2)


@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_dropout_falls_on_every_layer(layers):
    model = make(layers=layers, recurrent_dropout=0.5)
    assert [part.dropout.p for part in (model.lower, model.upper) if part is not None] == [0.5] * layers
