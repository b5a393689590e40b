"""Whatever Hydra or OmegaConf has to say arrives as one sentence that names the key and the nearest valid names."""

from __future__ import annotations

from pathlib import Path

import pytest

from attn_cli import cli

MODELS = (
    "convnet_1, convnet_10, convnet_10_small, convnet_5, convnet_64_64_64_512, convnet_bn, dram, dram_mnist, "
    "dram_small, draw_reader, fc, ram, …"  # the first twelve
)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model=rum"], "model=rum is not available. Did you mean 'ram'?"),
        (
            ["model="],
            f"model= is not available. Valid: {MODELS}.",
        ),
        (
            ["model=null"],
            f"model=null: model takes a name. Valid: {MODELS}.",
        ),
        (["trainer=3"], "trainer=3: trainer takes a name. Valid: auto, cpu, ddp, gpu, smoke."),
        (["glimpses=fixd"], "glimpses=fixd is not available. Did you mean 'fixed'?"),
        (["experiment=table1a_6"], "experiment=table1a_6 is not available. Did you mean 'ram/table1a_6'"),
        (["experiment=ram/table1a_66"], "experiment=ram/table1a_66 is not available. Did you mean 'ram/table1a_6'"),
        (["experiment/ram=table1a_6"], "experiment/ram is not a group; write experiment=ram/NAME."),
        (["modle=ram"], "modle is not a known key. Did you mean 'model'?"),
        (["sigma=1"], "sigma is not a known key. Did you mean 'model.sigma' or 'model.scale_sigma'?"),
        (["model.sigmaa=1"], "model.sigmaa is not a known key. Did you mean 'model.sigma'?"),
        (["+model.sigmaa=1"], "model.sigmaa is not a known key. Did you mean 'model.sigma'?"),
        (["++model._target_=os.system"], "model._target_ is not a known key. "),
        (["data=folder", "data.pieces=4"], "data.pieces is not a key of the data chosen here."),
        (["model=dram", "model.core=lstm"], "model.core is not a key of the model chosen here: it is for model=ram."),
        (["model.noise=0.1"], "model.noise is not a key of the model chosen here: it is for model=soft_ram."),
        (
            ["model=dram", "model.repulsion=1"],
            "model.repulsion is not a key of the model chosen here: it is for model=",
        ),
        (["data=folder"], "data.path must be given: write data.path=VALUE."),
        (["+seed=1"], "seed is a key already; write it without the plus sign."),
        (["~nothing"], "nothing is not a known key. "),
        (
            ["~model"],
            f"model must be chosen: write model=NAME. Valid: {MODELS}.",
        ),
        (["seed=1,2"], "seed=1,2 names several values: add -m to run each."),
        (
            ["trainer.parallel_lrs=0.1,0.2"],
            "trainer.parallel_lrs=0.1,0.2 names several values: add -m to run each, or write "
            "trainer.parallel_lrs=[0.1,0.2] for a list.",
        ),
        (["glimpses=range(2,8)"], "glimpses.count=range(2,8) names several values: add -m to run each."),
        (["outputs=~/runs"], "outputs=~/runs: ~ stands for nothing here; write the folder in full, or $HOME."),
        (["model.sigma=[1"], "'model.sigma=[1' is not understood; write KEY=VALUE"),
        (["data.root=${nope}"], "data.root cannot be resolved: Interpolation key 'nope' not found."),
        (["--config-dir", "nowhere"], "--config-dir: there is no folder "),
        (["hydra/launcher=nope"], "hydra/launcher=nope is not available. Valid: basic"),
        (["-m", "model=ram,rum"], "model=rum is not available. Did you mean 'ram'?"),
        (["-m", "debug=fast,null"], "debug=fast,null: debug takes a name. Valid: fast."),
        (["-m", "model=ram,3"], "model=ram,3: model takes a name."),
        (["-m", "outputs=a,b"], "outputs must be one folder in a sweep."),
    ],
)
def test_one_sentence(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *words]) == 1
    out, err = capfd.readouterr()
    assert err.startswith(f"attn train: {says}")
    assert err.count("\n") == 1 and out == ""
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_list_is_offered_where_one_fits(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "images=1,2"]) == 1
    assert "add -m to run each, or write images=[1,2] for a list." in capfd.readouterr().err


@pytest.mark.parametrize("word", ["glimpses=3", "model=dram", "optimizer.lr=1", "seed=x", "trainer=gpu"])
def test_what_belongs_to_training_alone_is_called_so(word: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", word]) == 1
    key, error = word.partition("=")[0], capfd.readouterr().err
    assert (f"{key} is a key of `attn train`; a run is taken as it was trained." in error) == (key != "seed")


def test_a_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTN_TRACEBACK", "1")
    with pytest.raises(Exception, match="model=rum is not available"):
        cli.main(["train", "model=rum"])
