"""Videos: glimpse n sees frame n and nothing else, along every way through a model; what does not suit is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.errors import Refused
from attn_cli.glimpses.reference import LoopRetina
from attn_cli.inference.monte_carlo import evaluate
from attn_cli.inference.stopping import answer_early
from attn_cli.learning.parallel import ParallelLearner
from attn_cli.learning.training import make_learner
from attn_cli.models.build import build_model
from attn_cli.models.counting import parts_of
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import multiply_adds
from attn_cli.models.rollout import draw_noise, rollout
from attn_cli.models.stopping import sureness

N, SIDE = 5, 24
INFO = DataInfo("videos", 1, SIDE, SIDE, 3, ("a", "b", "c"), 0, 8, 8, 8, frames=N)
RAM = schema.Ram(hidden=16, glimpse_hidden=8, glimpse_features=16)
SOFT = schema.SoftRam(hidden=16, features=16, filters=(4, 4, 4))
STOPPING = replace(RAM, stop="learned")
TRUNK = replace(SOFT, trunk=schema.ConvNet(filters=(4,), kernels=(3,), strides=(1,), pools=(2,)), trunk_layers=1)
MODELS = {"ram": RAM, "ram_lstm": replace(RAM, core="lstm"), "soft_ram": SOFT, "stopping": STOPPING, "trunk": TRUNK}


def build(config: Any, info: DataInfo = INFO, glimpses: int = N) -> GlimpseModel:
    torch.manual_seed(0)
    scales = 1 if isinstance(config, schema.SoftRam) else 2
    settings = schema.Config(model=config, glimpses=schema.Glimpses(glimpses, 6), scales=schema.Scales(scales))
    return build_model(settings, info).eval()


def videos(count: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, N, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_a_video_that_stands_still_is_an_image(name: str) -> None:
    model, images = build(MODELS[name]), videos()[:, 0]
    noise = draw_noise(0, 0, (2, 4, N), numbers=model.noises)
    still, one = rollout(model, images, noise, record=True)
    moving, other = rollout(model, images[:, None].expand(-1, N, -1, -1, -1), noise, record=True)
    assert torch.equal(still, moving) and torch.equal(one.locations, other.locations)
    assert torch.equal(one.boxes, other.boxes) and torch.equal(one.patches, other.patches)


def test_glimpse_n_of_the_retina_sees_frame_n_of_its_own_video() -> None:
    model, clips = build(RAM), videos()
    _, trace = rollout(model, clips, draw_noise(0, 0, (2, 4, N)), record=True)
    retina = LoopRetina(6, 2, 1)
    for t in range(N):
        expected = retina.look(retina.frame(clips[:, t]), trace.locations[:, :, t].flatten(0, 1))
        torch.testing.assert_close(trace.patches[:, :, t].flatten(0, 1), expected)


@pytest.mark.parametrize("name", ["ram", "soft_ram", "trunk"])
@pytest.mark.parametrize("changed", [1, N - 1])
def test_a_frame_matters_from_its_glimpse_on(name: str, changed: int) -> None:
    model, clips = build(MODELS[name]), videos()
    other = clips.clone()
    other[:, changed] = 255 - other[:, changed]
    noise = draw_noise(0, 0, (1, 4, N), numbers=model.noises)
    (first, one), (second, two) = (rollout(model, c, noise, record=True) for c in (clips, other))
    assert torch.equal(one.step_logits[:, :, :changed], two.step_logits[:, :, :changed])
    assert torch.equal(one.locations[:, :, : changed + 1], two.locations[:, :, : changed + 1])
    assert not torch.equal(first, second)


def test_the_context_is_that_of_the_first_frame() -> None:
    model, clips = build(SOFT), videos()
    state = model.start(clips[:, 0], 1)
    after = model.watch(state, clips[:, 1])
    assert torch.equal(after.context, state.context)
    torch.testing.assert_close(after.canvas.pixels, clips[:, 1] / 255)


def test_soft_attention_learns_from_every_frame() -> None:
    """A gradient reaches the place of each glimpse, so also of those in later frames."""
    model, clips = build(replace(SOFT, context="none")), videos()
    places: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        places.append(output)

    model.get_submodule("extraction").register_forward_hook(keep)
    logits, _ = rollout(model, clips, draw_noise(0, 0, (1, 4, N), numbers=model.noises))
    logits[..., 0].sum().backward()
    assert len(places) == N and all(output.grad[:, :2].abs().sum() > 0 for output in places)


@pytest.mark.parametrize("greedy", [True, False])
def test_answering_early_is_the_rollout(greedy: bool) -> None:
    """Batches that shrink take the right frames of the right videos along."""
    model, clips = build(STOPPING), videos(12)
    noise = draw_noise(1, 0, (3, 12, N), numbers=model.noises)
    with torch.no_grad():  # a logit that is 0 on average and differs from video to video
        weight = model.get_parameter("stop_network.weight")
        hidden = model.step(model.start(clips[:, 0], 3), noise[:, :, 0].flatten(0, 1)).hidden
        weight.mul_(20)
        seen = torch.cat([hidden, sureness(model.classify(hidden))], 1)
        model.get_parameter("stop_network.bias").fill_(-(seen @ weight[0]).mean())
    logits, trace = rollout(model, clips, noise, greedy)
    early, glimpses = answer_early(model, clips, noise, greedy)
    assert torch.equal(glimpses, trace.glimpses) and len(glimpses.unique()) > 1
    torch.testing.assert_close(early, logits)


def test_averaging_takes_what_makes_videos_on_demand() -> None:
    """`evaluate` asks for slices alone: the same errors from a tensor and from something that is none."""

    class OnDemand:
        shape, device = videos(8).shape, torch.device("cpu")

        def __getitem__(self, which: slice) -> torch.Tensor:
            return videos(8)[which]

    model, labels = build(RAM), torch.arange(8) % 3
    common: dict[str, Any] = {"samples": 3, "greedy": False, "batch_size": 7}
    assert evaluate(model, OnDemand(), labels, **common) == evaluate(model, videos(8), labels, **common)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ram_lstm", "soft_ram"])
def test_training_on_videos_learns_what_moves(name: str) -> None:
    """The class is which frames are bright: no single frame tells it."""
    labels = torch.arange(48) % 3
    clips = torch.zeros(48, N, 1, SIDE, SIDE, dtype=torch.uint8)
    clips[:, 0] = 255 * (labels == 0)[:, None, None, None]
    clips[:, N - 1] = 255 * (labels == 1)[:, None, None, None]

    class Data:
        info = replace(INFO, train=48)

        def steps_per_epoch(self, batch_size: int) -> int:
            return 60

    config = schema.Config(
        model=MODELS[name],
        glimpses=schema.Glimpses(N, 6),
        scales=schema.Scales(1),
        trainer=schema.Trainer(epochs=1, compile="off"),
        optimizer=schema.Optimizer(lr=1e-2),
    )
    learner = make_learner(config, Data())  # type: ignore[arg-type]
    made = learner.configure_optimizers()
    seen = []
    for step in range(60):
        loss = learner.loss((clips, labels, 0, step))
        made["optimizer"].zero_grad()
        loss.backward()
        made["optimizer"].step()
        made["lr_scheduler"].step()
        seen.append(loss.item())
    assert evaluate(learner.model, clips, labels).error() == 0 and seen[-1] < 0.5 * seen[0]


@pytest.mark.parametrize(
    "config",
    [schema.Dram(), schema.ConvNet(), schema.Rsam(hidden=16), schema.DrawReader(), schema.Stn()],
    ids=lambda config: config.name,
)
def test_who_looks_at_images_alone_says_so(config: Any) -> None:
    settings = schema.Config(model=config, glimpses=schema.Glimpses(N, 12), scales=schema.Scales(1))
    with pytest.raises(Refused, match=f"videos and model={config.name} looks at images: use model=ram or soft_ram"):
        build_model(settings, INFO)


def test_a_glimpse_for_every_frame() -> None:
    with pytest.raises(Refused, match=r"videos has 5 frames.* glimpses.count is 4: use glimpses=5 or data.frames=4"):
        build(RAM, glimpses=4)
    assert build(RAM, replace(INFO, frames=0), glimpses=4).glimpses == 4


def test_a_map_is_made_of_every_frame_and_counted() -> None:
    settings = schema.Config(model=TRUNK, glimpses=schema.Glimpses(N, 6), scales=schema.Scales(1))
    parts = {info.frames: parts_of(settings, info) for info in (INFO, replace(INFO, frames=0))}
    trunk = next(part for part in parts[0] if part.name == "trunk")
    assert multiply_adds(parts[N]) - multiply_adds(parts[0]) == (N - 1) * trunk.adds > 0


@pytest.mark.parametrize("name", ["ram", "soft_ram"])
def test_several_seeds_at_once_watch_their_own_videos(name: str) -> None:
    class Data:
        info = INFO

        def steps_per_epoch(self, batch_size: int) -> int:
            return 1

        def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
            return videos(4, seed), torch.arange(4) % 3

    data: Any = Data()
    settings = schema.Config(
        model=MODELS[name],
        glimpses=schema.Glimpses(N, 6),
        scales=schema.Scales(1),
        trainer=schema.Trainer(compile="off"),
    )
    members = [make_learner(replace(settings, seed=seed), data) for seed in (0, 1)]
    alone = [member.loss((*data.train_batch(member.config.seed, 0, 0, 4), 0, 0)).item() for member in members]
    together = ParallelLearner(members, [{}, {}])
    batch = next(iter(together.batches()))
    assert together.loss(batch).tolist() == pytest.approx(alone, rel=1e-5) and alone[0] != alone[1]


def test_pictures_of_a_map_show_the_frame_that_was_looked_at():
    model, clips = build(TRUNK), videos()
    state = model.start(clips[:, 0], 1)
    state = model.step(model.watch(state, clips[:, 1]), draw_noise(0, 0, (1, 4, 1), numbers=model.noises)[0, :, 0])
    assert torch.equal(state.image.pixels, clips[:, 1])
    assert torch.equal(model.patches(state), model.patches(replace(state, image=model.canvases(clips[:, 1])[1])))


def test_the_mean_image_of_videos_is_that_of_all_their_frames():
    model, clips = build(replace(SOFT, mean_image=True)), videos()
    model.prepare(lambda: [clips[:1], clips[1:]])
    assert torch.allclose(model.mean_image, clips.float().mean((0, 1)), atol=1e-3)
