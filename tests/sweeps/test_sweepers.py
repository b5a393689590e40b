"""Which jobs the sweepers choose, and how many threads each job gets."""

from __future__ import annotations

import pytest

from attn_cli.sweeps.sweepers import threads_per_job

RANDOM = ("hydra/sweeper=random", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "glimpses=int(interval(2,8))", "seed=7")


def chosen(work) -> list[list[str]]:
    return [job["overrides"] for job in work.jobs()]


def test_lists_globs_and_ranges(work) -> None:
    assert work("model=glob(ram*)", "seed=range(1,3)", "glimpses=2,4") == 0
    assert chosen(work) == [
        [f"model={model}", f"seed={seed}", f"glimpses.count={count}"]
        for model in ("ram", "ram_catch", "ram_lstm")
        for seed in (1, 2)
        for count in (2, 4)
    ]


def test_the_command_line_overrides_what_an_experiment_sweeps(work) -> None:
    assert work("experiment=rsam/figure4", "glimpses=2,3") == 0
    assert [words[0] for words in chosen(work)] == ["glimpses.count=2", "glimpses.count=3"]


def test_an_experiment_sweeps_glimpses_as_the_command_line_does(work) -> None:
    mine = work.folder / "mine" / "experiment"
    mine.mkdir(parents=True)
    (mine / "swept.yaml").write_text("# @package _global_\nhydra:\n  sweeper:\n    params:\n      glimpses: 2,4\n")
    assert work("--config-dir", "mine", "experiment=swept") == 0
    assert [words[0] for words in chosen(work)] == ["glimpses.count=2", "glimpses.count=4"]


def test_outputs_may_name_an_environment_variable(work, monkeypatch) -> None:
    monkeypatch.setenv("PLACE", "place")
    assert work("seed=1,2", "outputs=${oc.env:PLACE}/mine") == 0
    assert len(list((work.folder / "place" / "mine" / "sweeps").glob("*/results.csv"))) == 1


def test_random_search(work, capsys) -> None:
    assert work(*RANDOM, "hydra.sweeper.n_trials=4") == 0
    found = [dict(word.split("=") for word in words) for words in chosen(work)]
    assert len(found) == 4 and all(words["seed"] == "7" for words in found)
    assert len({words["optimizer.lr"] for words in found}) == 4
    assert all(1e-4 <= float(words["optimizer.lr"]) <= 1e-1 for words in found)
    assert all(2 <= int(words["glimpses.count"]) <= 8 for words in found)
    best = min(found, key=lambda words: abs(float(words["optimizer.lr"]) - 0.01) * 1000 + int(words["glimpses.count"]))
    assert f"optimizer.lr={best['optimizer.lr']}" in (work.sweep() / "best.txt").read_text()


def test_random_search_resumes_with_the_same_draws(work, tmp_path) -> None:
    """The third job kills the sweep; a search that was not killed draws the same."""
    words = [*RANDOM[:-1], "seed=1,2,3,4,5,6", "hydra.sweeper.n_trials=5", "hydra.sweeper.seed=2"]
    assert work(*words) == 0
    whole = chosen(work)
    work.sweep().rename(work.folder / "whole")
    seeds = [words[-1].partition("=")[2] for words in whole]
    work.fates(**{f"s{seeds[2]}": "stop"})
    assert work(*words) == 130
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert chosen(work) == whole


def test_a_longer_search_is_another_one(work, capsys) -> None:
    assert work(*RANDOM, "hydra.sweeper.n_trials=2") == 0
    assert work(*RANDOM, "hydra.sweeper.n_trials=3", f"resume_sweep={work.sweep()}") == 1
    assert "only here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=interval(0.1,1)"], "cannot be listed: add hydra/sweeper=random or hydra/sweeper=optuna"),
        (["hydra/sweeper=random", "seed=3"], "hydra/sweeper=random needs a key to search"),
        (["hydra/sweeper=random", "seed=1,2", "hydra.sweeper.n_trials=0"], "n_trials must be at least 1 and at most"),
        (["hydra/sweeper=random", "seed=1,2", "hydra.sweeper.n_trials=2.5"], "must be a whole number, not 2.5"),
        (["hydra/sweeper=random", "seed=1,2", "hydra.sweeper.n_trials=abc"], "must be a whole number, not 'abc'"),
        (["hydra/sweeper=random", "seed=1,2", "hydra.sweeper.seed=x"], "hydra.sweeper.seed must be a whole number"),
        (["hydra/sweeper=random", "seed=1,2", "hydra.sweeper.params=3"], "sweeper.params must be a group of keys"),
        (["hydra/sweeper=optuna", "seed=1,2", "hydra.sweeper.n_jobs=1.5"], "n_jobs must be a whole number, not 1.5"),
        (["hydra/sweeper=random", "seed=1,2", "hydra.sweeper.n_trial=3"], "Did you mean 'hydra.sweeper.n_trials'?"),
        (["seed=1,2", "hydra.sweeper.n_trials=3"], "it is for hydra/sweeper=optuna or hydra/sweeper=random."),
        (["seed=1,2", "hydra.sweep.dir=mine"], "hydra.sweep.dir=mine has no effect: a run makes its own folder"),
        (["seed=1,2", "hydra.run.dir=mine"], "hydra.run.dir=mine has no effect: a run makes its own folder"),
        (["hydra/sweeper=random", "model.sigma=tag(log,interval(0,1))"], "a logarithmic interval begins above 0"),
        (["hydra/sweeper=rando", "seed=1,2"], "hydra/sweeper=rando is not available. Did you mean 'random'"),
        (["seed=1,2", "trainer.parallel_lrs=[0.1,0.2]"], "in a sweep write optimizer.lr=RATE,RATE instead"),
        (["optimizer.lrr=1,2"], "optimizer.lrr is not a known key"),
        (["hydra/sweeper=random", "optimizer.lrr=1,2"], "optimizer.lrr is not a known key"),
    ],
)
def test_what_cannot_be_swept_is_refused_and_leaves_nothing(work, capsys, words: list[str], message: str) -> None:
    assert work(*words) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (work.folder / "outputs").exists()


@pytest.mark.parametrize(
    ("launcher", "jobs", "cores", "threads"),
    [
        ({"_target_": "x.BasicLauncher"}, 6, 8, None),
        ({"n_jobs": 4}, 6, 8, 2),
        ({"n_jobs": 4}, 2, 8, 4),  # two jobs leave half of four places empty
        ({"n_jobs": 4}, 6, 2, 1),
        ({"n_jobs": 3}, 6, 8, 2),
        ({"n_jobs": -1}, 6, 8, 1),  # all cores: six jobs on eight
        ({"n_jobs": -3}, 9, 8, 1),  # all but two
        ({"_target_": "x.LocalLauncher", "cpus_per_task": None}, 2, 8, 4),
        ({"_target_": "x.SlurmLauncher", "cpus_per_task": 6}, 50, 2, 6),
        ({"_target_": "x.SlurmLauncher", "cpus_per_task": None}, 50, 2, None),
    ],
)
def test_threads_per_job(launcher: dict, jobs: int, cores: int, threads: int | None) -> None:
    assert threads_per_job(launcher, jobs, cores) == threads
