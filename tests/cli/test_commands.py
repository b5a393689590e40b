"""Every command as a user types it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from attn_cli.commands import evaluate, file_names, mc_average
from attn_cli.config.command_sections import Evaluate, McAverage
from attn_cli.errors import Refused


def test_what_looks_at_a_run_does_without_lightning():
    """To import it takes longer than most evaluations."""
    modules = ("evaluate", "mc_average", "combine", "show", "attend", "cost")
    code = f"""import importlib, sys
for name in {modules}:
    importlib.import_module("attn_cli.commands." + name)
sys.exit(", ".join({{"pytorch_lightning", "lightning_fabric", "torch._dynamo"}} & set(sys.modules)) or None)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_train_leaves_a_complete_run_folder(trained):
    (run,) = trained.runs()
    result = json.loads((run / "result.json").read_text())
    expected = {
        "val_error", "test_error", "test_error_interval", "mc_samples", "seconds", "images_per_second", "versions",
        "commit", "seed", "learning_rate", "threads", "device", "model", "data", "glimpses", "scales", "size", "epochs",
        "digests",
    }  # fmt: skip
    assert expected <= set(result)
    low, high = result["test_error_interval"]
    assert 0 <= low <= result["test_error"] <= high <= 100
    assert result["threads"] == 1 and result["epochs"] == 2 and result["device"] == "cpu"
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["val_error"]) <= 100 for row in rows)
    assert rows[1]["step"] == "10"
    assert {"last.ckpt", "best.ckpt"} <= {path.name for path in (run / "checkpoints").iterdir()}
    assert Image.open(run / "curves.png").size[0] > 200
    assert "epoch   2/2" in (run / "log.txt").read_text()


def test_eval_takes_the_latest_run_and_is_reproducible(trained):
    first = trained("eval", "--mc-samples", "3", "repeats=2").stdout
    (run,) = trained.runs()
    written = run / "evaluation-test-mc3-repeats2.json"
    values = json.loads(written.read_text())
    assert str(written.relative_to(trained.folder)) in first
    trained("eval", "--mc-samples", "3", "repeats=2", f"run={run}", "batch_size=7")
    again = json.loads(written.read_text())
    assert again["test_error"] == values["test_error"]  # neither chance nor the batch size plays a part
    assert values["mc_samples"] == 3 and values["repeats"] == 2
    # The gain is over the mean-location path on the same images, as `attn eval` alone gives it.
    trained("eval", "repeats=2")
    mean = json.loads((run / "evaluation-test-mean-repeats2.json").read_text())
    assert values["gain"] == pytest.approx(mean["test_error"] - values["test_error"])
    low, high = values["gain_interval"]
    assert low <= values["gain"] <= high and "95 % interval" in first


def test_eval_compares_with_another_run_on_the_same_images(trained, tmp_path, monkeypatch):
    (run,) = trained.runs()
    hasty, littered = tmp_path / "hasty", tmp_path / "littered"
    for copy, old, new in ((hasty, "count: 6", "count: 1"), (littered, "pieces: 0", "pieces: 2")):
        shutil.copytree(run, copy)
        text = (copy / "config.yaml").read_text()
        assert old in text
        (copy / "config.yaml").write_text(text.replace(old, new))
    monkeypatch.setenv("ATTN_DATA", str(trained.data))

    def error(run, against=None):
        return evaluate.run(
            Evaluate(run=str(run), against=against and str(against), repeats=2, device="cpu", threads=1)
        )

    values = error(run, hasty)
    assert json.loads((run / "evaluation-test-mean-against-hasty-repeats2.json").read_text())["against"] == str(hasty)
    assert values["against_error"] == error(hasty)["test_error"]
    assert values["gain"] == pytest.approx(values["against_error"] - values["test_error"]) and values["gain"] != 0
    low, high = values["gain_interval"]
    assert low < values["gain"] < high
    with pytest.raises(Refused, match="different data"):
        error(run, littered)


def test_the_numbers_of_a_run_that_cannot_be_written_to_are_shown(trained, monkeypatch, capsys):
    def full(path, content):
        raise Refused(f"{path} could not be written.")

    monkeypatch.setenv("ATTN_DATA", str(trained.data))
    (run,) = trained.runs()
    for command, writer, config in (
        (evaluate, file_names, Evaluate(run=str(run), repeats=2, device="cpu", threads=1)),
        (mc_average, mc_average, McAverage(run=str(run), max_samples=2, repeats=2, device="cpu", threads=1)),
    ):
        monkeypatch.setattr(writer, "write_atomically", full)
        with pytest.raises(Refused, match="could not be written"):
            command.run(config)
        assert "error" in capsys.readouterr().out


def test_evaluations_with_other_settings_have_files_of_their_own(trained, tmp_path):
    (run,) = trained.runs()
    run = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluation-*"))
    ways = [
        ((), "test-mean"),
        (("checkpoint=last",), "test-mean-last"),
        (("seed=5", "repeats=2"), "test-mean-seed5-repeats2"),
        (("data=digits",), "digits-test-mean"),
    ]
    for words, _ in ways:
        trained("eval", f"run={run}", *words)
    trained("eval", "-m", f"run={run}", "mc_samples=1", "average=probabilities,log_probabilities")
    names = [name for _, name in ways] + ["test-mc1", "test-mc1-probabilities"]
    assert {path.name for path in run.glob("evaluation-*")} == {f"evaluation-{name}.json" for name in names}
    for pieces in (1, 2):
        trained("eval", f"run={run}", "data=digits", f"data.pieces={pieces}")
    other = [json.loads(path.read_text()) for path in run.glob("evaluation-digits-test-mean-*.json")]
    assert len(other) == 2 and other[0]["digest"] != other[1]["digest"]


def test_mean_evaluation_agrees_with_the_result_of_training(trained):
    trained("eval", "repeats=5")
    (run,) = trained.runs()
    mean = json.loads((run / "evaluation-test-mean.json").read_text())
    result = json.loads((run / "result.json").read_text())
    assert mean["test_error"] == pytest.approx(result["test_error"])
    assert mean["digest"] == result["digests"]["test"]
    for key in ("commit", "versions", "device", "threads"):
        assert mean[key] == result[key] or key == "commit"
    assert set(mean["versions"]) >= {"torch", "attn"}


def test_mc_average_writes_a_table_and_a_plot(trained):
    out = trained("mc-average", "max_samples=3", "repeats=2").stdout
    (run,) = trained.runs()
    rows = list(csv.DictReader((run / "mc-average-test-max_samples3-repeats2.csv").open()))
    assert [row["mc_samples"] for row in rows] == ["1", "2", "3"]
    assert all(float(row["standard_error"]) >= 0 for row in rows)
    assert Image.open(run / "mc-average-test-max_samples3-repeats2.png").size[0] > 200
    assert "mc-average-test-max_samples3-repeats2.csv" in out
    trained("mc-average", "checkpoint=last", "average=probabilities", "repeats=2")
    assert (run / "mc-average-test-last-probabilities-repeats2.csv").is_file()


def test_show_draws_paths_and_animations(trained):
    trained("show", "images=[3,5]", "split=validation")
    (run,) = trained.runs()
    assert Image.open(run / "pictures" / "paths-validation.png").size[0] > 200
    for number in (3, 5):
        assert Image.open(run / "pictures" / f"glimpses-validation-{number}.gif").n_frames == 6
    drawn = {path: path.stat().st_mtime_ns for path in (run / "pictures").iterdir()}
    trained("show", "images=[3]", "split=validation", "checkpoint=last")  # beside those of the best
    added = {path.name for path in (run / "pictures").iterdir()} - {path.name for path in drawn}
    assert added == {"paths-validation-last.png", "glimpses-validation-last-3.gif"}
    assert all(path.stat().st_mtime_ns == written for path, written in drawn.items())
    refused = trained("show", "images=[99999]", code=1)
    assert "lies outside the test split" in refused.stderr and "Traceback" not in refused.stderr


def test_runs_lists_the_run_with_its_error_and_status(trained):
    out = trained("runs").stdout
    (run,) = trained.runs()
    assert run.name in out and "finished" in out and "digits" in out


def test_sweep_ends_with_a_table_over_seeds_and_a_csv(attn):
    out = attn("train", "-m", *attn.small, "glimpses=1,2", "seed=1,2", "trainer.limit_train_steps=2").stdout
    assert len(attn.runs()) == 4
    (results,) = (attn.folder / "outputs" / "sweeps").glob("*/results.csv")
    rows = list(csv.DictReader(results.open()))
    assert {row["seed"] for row in rows} == {"1", "2"}
    assert "±" in out


def test_three_runs_started_at_once_get_three_folders(attn):
    processes = [attn.start("train", *attn.small, "trainer.limit_train_steps=1", f"seed={seed}") for seed in range(3)]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert len(attn.runs()) == 3


def test_same_seed_same_weights_other_seed_other_weights(attn):
    from safetensors import safe_open

    def weights(run):
        with safe_open(run / "checkpoints" / "last.ckpt", "pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys()) if "state_dict" in name}

    for seed in (7, 7, 8):
        attn("train", *attn.small, "trainer.limit_train_steps=3", f"seed={seed}")
    by_seed = {7: [], 8: []}
    for run in attn.runs():
        by_seed[json.loads((run / "result.json").read_text())["seed"]].append(weights(run))
    first, second = by_seed[7]
    assert first.keys() == second.keys() and len(first) > 5
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != by_seed[8][0][name]).any() for name in first)


def test_a_run_whose_own_images_have_changed_is_refused(attn):
    """With their number the split changes: what it was trained on would be among what it is tested on."""
    names = [attn.folder / "own" / name for name in "ab"]
    for folder in names:
        folder.mkdir(parents=True)
        for i in range(20):
            Image.new("L", (9, 9), 10 * i).save(folder / f"{i}.png")
    small = [word for word in attn.small if not word.startswith("data.")]
    attn("train", *small, "data=folder", "data.path=own")
    (run,) = attn.runs()
    before, status = sorted(path.name for path in run.iterdir()), (run / "status.json").read_text()
    Image.new("L", (9, 9), 255).save(names[0] / "new.png")
    refused = attn("eval", code=1).stderr
    assert "have changed since it began" in refused and f"attn eval run={run.relative_to(attn.folder)}" in refused
    assert "as other images" in attn("show", "images=1", code=1).stderr
    assert sorted(path.name for path in run.iterdir()) == before and (run / "status.json").read_text() == status
    assert "does not suit" in attn("eval", "data=digits", code=1).stderr
    changed = ("data=folder", "data.path=own")
    assert "set output=FOLDER" in attn("eval", *changed, "output=own/a/0.png", code=1).stderr
    attn("eval", *changed, "output=elsewhere")
    (written,) = (attn.folder / "elsewhere").iterdir()
    assert json.loads(written.read_text())["run"] == str(run.relative_to(attn.folder))
    assert sorted(path.name for path in run.iterdir()) == before
    (names[0] / "new.png").unlink()
    attn("eval")


def test_a_recorded_data_folder_that_is_gone_is_named(attn):
    """No command that begins with a run takes another data folder, and none makes the data again where it was."""
    attn("train", *attn.small, "data.root=first")
    (run,) = attn.runs()
    recorded = f"{run.name}/config.yaml"
    (attn.folder / "first").rename(attn.folder / "second")
    for command in (["eval"], ["mc-average", "max_samples=2"], ["show", "images=1"]):
        refused = attn(*command, code=1).stderr
        assert "There is no folder first" in refused and "as data.root in" in refused and recorded in refused
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "status": "terminated"}))
    assert recorded in attn("train", f"resume={run}", code=1).stderr
    assert not (attn.folder / "first").exists()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("root: first", "root: second"))
    attn("train", f"resume={run}")
    attn("eval")


def test_a_recorded_data_folder_that_cannot_be_used_is_named(attn):
    attn("train", *attn.small, "data.root=first")
    (run,) = attn.runs()
    (attn.folder / "first" / "digits.h5").unlink()
    (attn.folder / "first" / "digits.h5").mkdir()
    refused = attn("eval", code=1).stderr
    assert f"move it away (data.root=first comes from {run.relative_to(attn.folder)}/config.yaml)." in refused


def test_a_stopped_run_does_not_go_on_with_other_images(attn):
    (attn.folder / "own" / "a").mkdir(parents=True)
    for i in range(20):
        Image.new("L", (9, 9), 10 * i).save(attn.folder / "own" / "a" / f"{i}.png")
    attn("train", "trainer=smoke", "model=fc", "data=folder", "data.path=own")
    (run,) = attn.runs()
    assert run.name.startswith("folder-fc-1g-")  # it sees the whole image, however many glimpses are set
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "status": "terminated"}))
    Image.new("L", (9, 9), 255).save(attn.folder / "own" / "a" / "0.png")
    refused = attn("train", f"resume={run}", code=1).stderr
    assert "have changed since it began" in refused and "start a new run" in refused
    assert json.loads((run / "status.json").read_text())["status"] == "terminated"
    Image.new("L", (9, 9), 0).save(attn.folder / "own" / "a" / "0.png")
    attn("train", f"resume={run}")
    assert f"init_from={run}" in attn("train", f"resume={run}", code=1).stderr


def test_a_run_is_evaluated_on_folders_of_its_own_classes(attn):
    for folder, names in {"own": "ab", "other": "bc", "fewer": "b"}.items():
        for name in names:
            (attn.folder / folder / name).mkdir(parents=True)
            for i in range(9):
                Image.new("L", (9, 9), 10 * i).save(attn.folder / folder / name / f"{i}.png")
    small = [word for word in attn.small if not word.startswith("data.")]
    attn("train", *small, "data=folder", "data.path=own")
    wrong = attn("eval", "data=folder", "data.path=other", code=1).stderr
    assert "data.path=other has other classes than own, which" in wrong and "only one of them has a, c;" in wrong
    assert "only one of them has a;" in attn("eval", "data=folder", "data.path=fewer", code=1).stderr
    (attn.folder / "fewer" / "a").mkdir()
    attn("eval", "data=folder", "data.path=fewer")
    shutil.rmtree(attn.folder / "own")
    attn("eval", "data=folder", "data.path=fewer")
