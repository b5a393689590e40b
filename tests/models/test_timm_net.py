"""timm's networks, with a stand-in for the package: what is asked of it, and what it is given."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from attn_cli.config.schema import Config, Cub200, Timm
from attn_cli.errors import Refused
from attn_cli.learning.restore import pretrain
from attn_cli.learning.training import LEARNERS
from attn_cli.models.rollout import draw_noise, rollout
from attn_cli.models.timm_net import TimmNet


class Network(torch.nn.Module):
    default_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.5)}

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.stem, self.head = torch.nn.Linear(channels, 5), torch.nn.Linear(5, classes)

    def forward(self, x):
        self.seen = x
        return self.head(self.stem(x.mean((2, 3))))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    calls: list[dict] = []

    def create_model(architecture: str, **options):
        calls.append({"architecture": architecture, **options})
        if architecture == "unknown":
            raise RuntimeError("Unknown model (unknown)")
        return Network(options["num_classes"], options["in_chans"])

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    return calls


def test_the_network_sees_the_whole_normalised_image(asked):
    model = TimmNet(Timm(architecture="some_net"), None, None, channels=3, classes=7)
    assert asked == [{"architecture": "some_net", "pretrained": False, "num_classes": 7, "in_chans": 3}]
    images = torch.randint(0, 256, (4, 3, 9, 8), dtype=torch.uint8)
    logits, trace = rollout(model, images, draw_noise(0, 0, (2, 4, 1)), record=True)
    assert logits.shape == (2, 4, 7) and torch.equal(logits[0], logits[1])
    shift, scale = torch.tensor([0.5, 0.4, 0.3]).view(-1, 1, 1), torch.tensor([0.1, 0.2, 0.5]).view(-1, 1, 1)
    assert torch.allclose(model.network.seen, (images / 255 - shift) / scale, atol=1e-5)
    assert trace.boxes[0, 0, 0, 0].tolist() == [0, 0, 8, 9] and not model.moves and "timm" in LEARNERS
    grey = TimmNet(Timm(), None, None, channels=1, classes=2)  # whose means are of three channels
    grey.start(images[:, :1], 1)
    assert torch.allclose(grey.network.seen, images[:, :1] / 255)


def test_pretrained_weights_are_taken_over_as_far_as_they_fit(asked, tmp_path):
    theirs, path = Network(1000, 3), tmp_path / "weights.safetensors"
    save_file(theirs.state_dict(), path)
    model = TimmNet(Timm(weights=str(path)), None, None, channels=3, classes=7)
    report = pretrain(model, str(path))
    assert torch.equal(model.network.stem.weight, theirs.stem.weight)
    assert "2 of 4 tensors" in report and "new: head.weight, (7, 5) here, of shape (1000, 5) there" in report
    save_file({"other": torch.zeros(2, 2)}, path)
    with pytest.raises(Refused, match="has no weights that fit this model: name one of the same architecture"):
        pretrain(model, str(path))


def test_what_cannot_be_made_is_refused(asked, monkeypatch):
    with pytest.raises(Refused, match="model.architecture=unknown cannot be made by timm: Unknown model"):
        TimmNet(Timm(architecture="unknown"), None, None, channels=3, classes=7)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Refused, match="model=timm needs the package timm: run `pip install timm`"):
        TimmNet(Timm(), None, None, channels=3, classes=7)
    assert Config(model=Timm(), data=Cub200()).model.weights is None
