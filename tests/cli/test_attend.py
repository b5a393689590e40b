"""`attn attend` and ten crops on a data set of noise, with a model whose regions are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from cub200_layout import folder, layout

from attn_cli.commands import attend, evaluate
from attn_cli.config.command_sections import Attend, Evaluate
from attn_cli.config.schema import Config, ConvNet, Cub200, Glimpses, Scenes, SoftRam
from attn_cli.data.batches import open_data
from attn_cli.errors import Refused
from attn_cli.inference.regions import cut
from attn_cli.learning import checkpoints
from attn_cli.models.build import build_model
from attn_cli.runs import Run, create

PLACE = (0.4, -0.3)  # where the model looks, the 200×160 crop spanning [-1, 1]
SHARE = 0.5
DIGITS = Scenes(name="digits", source="digits")


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("photos"), layout(24, 4))


def saved(config: Config, outputs: Path, change=lambda model: None) -> Run:
    """A run folder with a checkpoint of a new model."""
    torch.manual_seed(0)
    run = create(config, outputs)
    model = build_model(config, open_data(config.data).info)
    change(model)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    checkpoints.save(run.checkpoints / "best.ckpt", {"state_dict": state})
    return run


def looks_at_one_place(model) -> None:
    with torch.no_grad():
        model.extraction.weight.zero_()
        x, y = np.arctanh(PLACE)
        model.extraction.bias.copy_(torch.tensor([x, y, np.log(SHARE), np.log(SHARE), 0.0, 0.0]))


@pytest.fixture
def run(tmp_path: Path, birds: Path) -> Run:
    model = SoftRam(features=8, hidden=6, context="none", noise=0.0)
    data = Cub200(path=str(birds), height=200, width=160)
    return saved(Config(model=model, data=data, glimpses=Glimpses(2, 5)), tmp_path, looks_at_one_place)


def test_every_image_is_cut_out_where_the_model_looked(run, tmp_path):
    output = tmp_path / "regions.h5"
    told = attend.run(Attend(run=str(run.path), output=str(output), batch_size=5))
    before, after = open_data(run.config().data), open_data(Cub200(path=str(output)))
    # From the middle of the crop, whose corner is (48, 28); five strides of half a grid over the crop.
    x, y = 48 + 1.4 * 80, 28 + 0.7 * 100
    half_x, half_y = 2.5 * SHARE * 159 / 4, 2.5 * SHARE * 199 / 4
    region = torch.tensor([x - half_x, y - half_y, x + half_x, y + half_y]).clamp(0, 256)
    for split in ("train", "test"):
        pool = before.images[split]
        wanted = cut(pool, region.expand(len(pool), 4), 256)
        assert (after.images[split].int() - wanted.int()).abs().max() <= 1  # of 255: the region is of fp32
        assert after.source.labels[split].tolist() == before.source.labels[split].tolist()
        scale = torch.tensor(256.0) / (region[2:] - region[:2])
        for box, old in zip(after.source.boxes[split], before.source.boxes[split], strict=True):
            edges = (torch.from_numpy(old.astype(np.float32)) + torch.tensor([0.0, 0, 1, 1])).view(2, 2)
            edges = ((edges - region[:2]) * scale).clamp(0, 256)
            assert (torch.from_numpy(box.astype(np.float32)).view(2, 2) - edges).abs().max() <= 1.5
    # The same images validate, and the file offers what the original does.
    assert torch.equal(after.fixed("validation")[1], before.fixed("validation")[1])
    assert (after.info.train, after.info.validation, after.info.test) == (17, 1, 6)
    assert len(list(after.ten_crops("test"))) == 10 and after.train_batch(0, 0, 0, 4)[0].shape == (4, 3, 224, 224)
    assert after.info.class_names == before.info.class_names and run.name in after.source.origin
    assert 0 < told["iou"]["train"] < 1


def test_true_boxes_fill_the_images(run, tmp_path):
    output = tmp_path / "boxes.h5"
    told = attend.run(Attend(run=str(run.path), output=str(output), regions="boxes"))
    assert told["iou"] == {"train": 1.0, "test": 1.0}
    after = open_data(Cub200(path=str(output)))
    for split in ("train", "test"):
        assert (after.source.boxes[split] == [0, 0, 255, 255]).all()
    # Made of noise but for the bird in its box, which is bright in red and green.
    inner = after.images["test"][:, :, 20:236, 20:236].float()
    assert inner[:, 0].mean() > 235 and inner[:, 1].mean() > 185 and inner[:, 0].std() < 20


def test_what_cannot_be_cut_out_is_refused(run, birds, tmp_path, monkeypatch):
    there = tmp_path / "there.h5"
    there.write_bytes(b"mine")
    for output in (there, tmp_path / "none" / "a.h5", tmp_path / "a.zip"):
        with pytest.raises(Refused, match="must be a new .h5 file in a folder that exists"):
            attend.run(Attend(run=str(run.path), output=str(output)))
    assert there.read_bytes() == b"mine"
    with pytest.raises(Refused, match=r"/proc/a.h5 cannot be written .* choose another output\."):  # not even by root
        attend.run(Attend(run=str(run.path), output="/proc/a.h5", regions="boxes"))
    still = ConvNet(filters=(2,), kernels=(3,), strides=(4,), pools=(4,), hidden=(), dropout=0.0)
    still_run = saved(Config(model=still, data=run.config().data), tmp_path)
    with pytest.raises(Refused, match="looks at no region"):
        attend.run(Attend(run=str(still_run.path), output=str(tmp_path / "a.h5")))
    digits = create(Config(data=DIGITS), tmp_path)
    with pytest.raises(Refused, match="has data=digits: regions are cut out of the images of data=cub200"):
        attend.run(Attend(run=str(digits.path), output=str(tmp_path / "a.h5"), regions="boxes"))
    monkeypatch.setattr(attend, "cut", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attend.run(Attend(run=str(run.path), output=str(tmp_path / "a.h5")))
    assert [path.name for path in tmp_path.iterdir() if "h5" in path.name] == ["there.h5"]


def test_a_damaged_or_absent_file_is_refused(run, tmp_path):
    output = tmp_path / "boxes.h5"
    attend.run(Attend(run=str(run.path), output=str(output), regions="boxes"))
    content = bytearray(output.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "cut.h5").write_bytes(content)
    with pytest.raises(Refused, match=r"cut.h5 is damaged .*: make it again with `attn attend`"):
        open_data(Cub200(path=str(tmp_path / "cut.h5")))
    with pytest.raises(Refused, match="There is no file"):
        open_data(Cub200(path=str(tmp_path / "none.h5")))


def test_ten_crops_and_overlap_in_an_evaluation(run, tmp_path):
    config = Evaluate(run=str(run.path), repeats=1, batch_size=4)
    one, ten = evaluate.run(config), evaluate.run(dataclasses.replace(config, ten_crops=True))
    assert (run.path / "evaluation-test-mean-ten-crops-repeats1.json").is_file()
    assert ten["ten_crops"] and not one["ten_crops"]
    assert one["mislocalised_errors"] is not None and ten["mislocalised_errors"] is None  # whose errors are others
    assert one["images"] == ten["images"] == 6 and one["iou"] == ten["iou"]
    data = open_data(run.config().data)
    boxes = data.boxes("test").double()
    shares = (boxes[:, 2:] - boxes[:, :2]).prod(1) / (200 * 160)
    assert one["whole_image_iou"] == pytest.approx(shares.mean().item())
    assert 0 < one["iou"] < 1
    with pytest.raises(Refused, match="choose one"):
        evaluate.run(dataclasses.replace(config, ten_crops=True, mc_samples=2, run=str(noisy(run, tmp_path).path)))
    digits = Config(data=DIGITS)
    with pytest.raises(Refused, match="ten_crops=true is for data=cub200, not for data=digits"):
        evaluate.run(Evaluate(run=str(saved(digits, tmp_path).path), ten_crops=True))


def noisy(run: Run, outputs: Path) -> Run:
    config = run.config()
    return saved(dataclasses.replace(config, model=dataclasses.replace(config.model, noise=0.1)), outputs)
