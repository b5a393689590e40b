"""Optuna's study in the sweep's folder: resumed after a kill, told once, refused if of another version."""

from __future__ import annotations

import sqlite3

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from attn_cli import cli
from attn_cli.sweeps import study, sweepers

WORDS = ("hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "glimpses=range(2,9,3)", "seed=7,8")


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna")


def trials(work, optuna) -> list:
    storage = optuna.storages.RDBStorage(f"sqlite:///{work.sweep()}/study.db")
    return optuna.load_study(study_name=study.NAME, storage=storage).get_trials()


def test_trials_are_jobs_and_are_told_their_validation_error(work, optuna) -> None:
    assert work(*WORDS, "model.sigma=0.2", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2") == 0
    found = trials(work, optuna)
    assert len(found) == len(work.jobs()) == 3
    for trial, job in zip(found, work.jobs(), strict=True):
        assert trial.value == pytest.approx(job["result"]["val_error"])
        words = dict(word.split("=") for word in job["overrides"])
        assert words["model.sigma"] == "0.2" and words["seed"] == trial.params["seed"]
        assert float(words["optimizer.lr"]) == pytest.approx(trial.params["optimizer.lr"], rel=1e-5)
        assert int(words["glimpses.count"]) == trial.params["glimpses.count"] in (2, 5, 8)


def test_a_study_that_was_broken_off_goes_on_as_if_nothing_had_happened(work, optuna) -> None:
    assert work(*WORDS[:3], "seed=1,2,3,4,5", "hydra.sweeper.n_trials=4") == 0
    whole = [job["overrides"] for job in work.jobs()]
    work.sweep().rename(work.folder / "whole")
    seed = whole[2][-1].partition("=")[2]
    work.fates(**{f"s{seed}": "stop"})
    assert work(*WORDS[:3], "seed=1,2,3,4,5", "hydra.sweeper.n_trials=4") == 130
    work.fates()
    work.ran()
    before = len([job for job in work.jobs() if job["status"] == "finished"])
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert [job["overrides"] for job in work.jobs()] == whole
    assert len(work.ran()) == 4 - before
    assert [trial.state.name for trial in trials(work, optuna)] == ["COMPLETE"] * 4


def test_a_trial_that_failed_is_run_again_and_one_that_is_no_number_is_not(work, optuna) -> None:
    words = ["hydra/sweeper=optuna", "seed=1", "glimpses=2,3", "hydra.sweeper.n_trials=1"]
    work.fates(s1="fail")
    assert work(*words) == 1
    assert [trial.state.name for trial in trials(work, optuna)] == ["RUNNING"]
    work.fates(s1="nan")
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert [trial.state.name for trial in trials(work, optuna)] == ["FAIL"]
    work.ran()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert work.ran() == []


def test_a_result_that_was_not_told_before_the_kill_is_told_later(work, optuna) -> None:
    assert work(*WORDS, "hydra.sweeper.n_trials=2") == 0
    with sqlite3.connect(work.sweep() / "study.db") as base:
        base.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
        base.execute("DELETE FROM trial_values WHERE trial_id = (SELECT trial_id FROM trials WHERE number = 1)")
    work.ran()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert work.ran() == []
    assert trials(work, optuna)[1].value == pytest.approx(work.jobs()[1]["result"]["val_error"])


def test_a_study_of_another_version_is_refused(work, optuna, capsys) -> None:
    assert work(*WORDS, "hydra.sweeper.n_trials=1") == 0
    with sqlite3.connect(work.sweep() / "study.db") as base:
        base.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    capsys.readouterr()
    assert work(f"resume_sweep={work.sweep()}") == 1
    error = capsys.readouterr().err
    assert f"study.db is not a study that optuna {optuna.__version__} reads" in error and error.count("\n") == 1


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one" * 30, b"SQLite format 3\0"])
def test_a_damaged_study_is_refused(work, optuna, capsys, content: bytes) -> None:
    assert work(*WORDS, "hydra.sweeper.n_trials=1") == 0
    (work.sweep() / "study.db").write_bytes(content)
    capsys.readouterr()
    assert work(f"resume_sweep={work.sweep()}") == 1
    error = capsys.readouterr().err
    assert "is not a study that optuna" in error and error.count("\n") == 1


def test_a_study_that_is_gone_or_older_than_the_sweep_is_refused(work, optuna, capsys) -> None:
    assert work(*WORDS, "hydra.sweeper.n_trials=1") == 0
    older = (work.sweep() / "study.db").read_bytes()
    work.sweep().rename(work.folder / "other")
    assert work(*WORDS, "hydra.sweeper.n_trials=2") == 0
    path = work.sweep() / "study.db"
    path.unlink()
    for content in (None, older):
        if content is not None:
            path.write_bytes(content)
        capsys.readouterr()
        assert work(f"resume_sweep={work.sweep()}") == 1
        sentence = f"{path} is gone or lacks trials that this sweep has begun: restore it, or start a new sweep."
        assert capsys.readouterr().err == f"The sweep broke off: {sentence}\n"
        assert path.exists() == (content is not None)


def test_a_study_of_other_keys_is_refused(work, optuna, capsys) -> None:
    assert work(*WORDS, "hydra.sweeper.n_trials=1") == 0
    study_of_lr = (work.sweep() / "study.db").read_bytes()
    work.sweep().rename(work.folder / "other")
    assert work("hydra/sweeper=optuna", "model.sigma=interval(0.1,0.2)", "hydra.sweeper.n_trials=1") == 0
    (work.sweep() / "study.db").write_bytes(study_of_lr)
    capsys.readouterr()
    assert work(f"resume_sweep={work.sweep()}") == 1
    assert "is a study of other keys or values than this sweep" in capsys.readouterr().err


def test_other_words_are_another_search(work, optuna, capsys) -> None:
    assert work(*WORDS, "hydra.sweeper.n_trials=1") == 0
    assert work(*WORDS[:3], "hydra.sweeper.n_trials=1", f"resume_sweep={work.sweep()}") == 1
    assert "(seed=7,8 only there)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "seed=range(1,10)"], "goes by the validation error: set split=validation."),
        (["eval", "seed=1", "split=test,validation"], "goes by the validation error: set split=validation."),
        (["combine", "forward=a", "backward=b", "seed=1,2"], "goes by the validation error: set split=validation."),
        (["bench", "threads=1,2"], "goes by the validation error, and attn bench has none: leave the sweeper out"),
    ],
)
def test_test_errors_and_none_at_all_choose_nothing(work, optuna, capsys, words: list[str], message: str) -> None:
    assert cli.main([words[0], "-m", "hydra/sweeper=optuna", *words[1:]]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (work.folder / "outputs").exists()


def test_without_optuna_the_extra_is_named_and_nothing_is_left(work, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "find_spec", lambda name: None)
    assert work(*WORDS) == 1
    assert capsys.readouterr().err == (
        "attn train: hydra/sweeper=optuna needs Optuna, which is not installed: "
        "install attn-cli[sweeps], in a checkout with pip install -c constraints.txt -e '.[sweeps]'.\n"
    )
    assert not (work.folder / "outputs").exists()


@pytest.mark.parametrize(
    ("word", "kind", "values"),
    [
        ("key=interval(0.1,0.5)", "Float", {"low": 0.1, "high": 0.5}),
        ("key=tag(log,interval(1e-4,1e-1))", "Float", {"low": 1e-4, "high": 1e-1, "log": True}),
        ("key=int(interval(2,8))", "Int", {"low": 2, "high": 8}),
        ("key=tag(log,int(interval(1,8)))", "Int", {"low": 1, "high": 8, "log": True}),
        ("key=range(2,9,3)", "Int", {"low": 2, "high": 8, "step": 3}),
        ("key=a,b", "Categorical", {"choices": ("a", "b")}),
    ],
)
def test_a_key_has_the_distribution_that_was_asked_for(optuna, word: str, kind: str, values: dict) -> None:
    override = OverridesParser.create().parse_override(word)
    assert study.distribution(override) == getattr(optuna.distributions, f"{kind}Distribution")(**values)


def test_low_errors_are_sought_from_the_seed_of_the_sweep(optuna, tmp_path) -> None:
    swept = {"key": OverridesParser.create().parse_override("key=interval(0.1,0.5)")}
    studies = [study.Study(tmp_path / f"{name}.db", swept, seed, 0) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    one, same, other = (found.words(found.ask()) for found in studies)
    assert one == same != other
    assert studies[0].study.sampler._constant_liar  # trials that run at once are spread
    assert studies[0].study.direction == optuna.study.StudyDirection.MINIMIZE


def test_as_many_jobs_are_proposed_at_once_as_asked_for(work, optuna, monkeypatch) -> None:
    batches, launch = [], sweepers.Planned.launch
    monkeypatch.setattr(
        sweepers.Planned, "launch", lambda self, numbered: batches.append(len(numbered)) or launch(self, numbered)
    )
    assert work(*WORDS, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2") == 0
    assert batches == [2, 1]
