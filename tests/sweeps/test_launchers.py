"""Jobs in processes of their own: joblib, submitit and Ray on this machine, and what Slurm would be asked for."""

from __future__ import annotations

import os
from importlib.util import find_spec
from shutil import which

import pytest
from hydra import compose, initialize_config_dir

from attn_cli.commands import entry
from attn_cli.sweeps import plan, sweepers

CORES = len(os.sched_getaffinity(0))
SWEEPS = "attn-cli[sweeps], in a checkout with pip install -c constraints.txt -e '.[sweeps]'"


def threads(work, seed: int) -> str:
    return (work.folder / f"threads-{seed}.txt").read_text()


def test_joblib_shares_the_processor_and_a_killed_job_is_resumable(work) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    work.fates(s3="kill after the first")
    done = work.process("seed=1,2,3,4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 1, done.stderr
    said = done.stderr[done.stderr.index("The sweep broke off: TerminatedWorkerError") :].splitlines()
    assert "did not finish" in said[1]  # the library's own text has many lines
    share = max(1, CORES // 2)
    assert threads(work, 1) == f"{share} {share}"
    unfinished = {job["overrides"][0] for job in work.jobs() if job["status"] != "finished"}
    assert "seed=3" in unfinished
    work.fates()
    work.ran()
    resumed = work.process(f"resume_sweep={work.sweep()}", "hydra/launcher=basic")
    assert resumed.returncode == 0, resumed.stderr
    assert [job["status"] for job in work.jobs()] == ["finished"] * 4
    assert len(work.ran()) <= 3


def test_no_jobs_at_once_are_refused_and_leave_nothing(work, capsys) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert work("seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0") == 1
    assert "hydra.launcher.n_jobs must be at least 1" in capsys.readouterr().err
    assert not (work.folder / "outputs").exists()


def test_threads_that_a_person_set_are_left_alone(work) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["seed=1,2", "trainer.threads=3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert work.process(*words, OMP_NUM_THREADS="5").returncode == 0
    assert threads(work, 1) == "3 5"


def test_submitit_on_this_machine(work) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    work.fates(s2="fail")
    done = work.process("seed=1,2", "hydra/launcher=submitit_local")
    assert done.returncode == 1, done.stderr
    assert f"What the jobs print is in {work.sweep()}/.submitit" in done.stdout
    assert [job["status"] for job in work.jobs()] == ["finished", "failed"]
    assert {job["pid"] for job in work.jobs()}.isdisjoint({os.getpid()})
    share = max(1, CORES // 2)
    assert threads(work, 1) == f"{share} {share}"


def test_ray_on_this_machine(work) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    work.fates(s2="fail")
    done = work.process("seed=1,2", "hydra/launcher=ray")
    assert done.returncode == 1, done.stderr
    assert [job["status"] for job in work.jobs()] == ["finished", "failed"]
    work.fates()
    work.ran()
    resumed = work.process(
        f"resume_sweep={work.sweep()}", "hydra/launcher=ray", "+hydra.launcher.ray.remote.num_cpus=2"
    )
    assert resumed.returncode == 0, resumed.stderr
    assert len(work.ran()) == 1
    assert [threads(work, 1), threads(work, 2)] == ["None 1", "None 2"]  # as Ray sets them


def test_slurm_is_asked_for_what_the_configuration_says() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(entry.conf_folder()), version_base="1.3"):
        words = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1"]
        launcher = compose("train", overrides=words, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith(".SlurmLauncher")
    assert (launcher.partition, launcher.gpus_per_node, launcher.cpus_per_task) == ("gpu", 1, 4)
    assert (launcher.timeout_min, launcher.array_parallelism, launcher.max_num_timeout) == (1440, 16, 0)


def test_settings_that_a_launcher_passes_on_are_added_and_may_change_when_a_sweep_goes_on(work, capsys) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    assert work("seed=1,2", "hydra/launcher=submitit_slurm", "hydra.launcher.additional_parameters.nice=1") == 1
    assert capsys.readouterr().err == (
        "attn train: hydra.launcher.additional_parameters.nice is not set in hydra/launcher=submitit_slurm; "
        "write +hydra.launcher.additional_parameters.nice=VALUE to add it.\n"
    )
    recorded = plan.Plan("train", (), ("seed=1,2",), "grid", (), (), 2)
    words = ["hydra/launcher=slurm", "+hydra.launcher.additional_parameters.nice=1"]
    assert plan.continued(recorded, words) == ("seed=1,2", *words)


def test_what_is_given_takes_the_place_of_what_is_recorded_kind_by_kind() -> None:
    recorded = plan.Plan("train", (), ("seed=1,2", "hydra/launcher=joblib"), "grid", (), (), 2)
    assert plan.continued(recorded, ()) == recorded.overrides
    assert plan.continued(recorded, ("hydra/launcher=slurm",)) == ("seed=1,2", "hydra/launcher=slurm")
    assert plan.continued(recorded, ("seed=3",)) == ("seed=3", "hydra/launcher=joblib")


def test_what_jobs_find_in_their_environment_is_taken_back(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # a person's own
    before = dict(os.environ)
    with pytest.raises(RuntimeError), sweepers._shared_processor(3):
        assert dict(os.environ) == {**before, "OMP_NUM_THREADS": "3"}
        raise RuntimeError("broken off")
    assert dict(os.environ) == before
    monkeypatch.delenv("OMP_WAIT_POLICY")
    with sweepers._shared_processor(3):
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    before = dict(os.environ)
    with sweepers._shared_processor(None):
        assert dict(os.environ) == before


@pytest.mark.skipif(which("srun") is not None, reason="there is a Slurm")
def test_slurm_where_there_is_none_is_refused(work, capsys) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    assert work("hydra/launcher=slurm", "seed=1,2") == 1
    error = capsys.readouterr().err
    assert 'broke off before its first job: RuntimeError: Could not detect "srun"' in error and error.count("\n") == 1
    assert not (work.folder / "outputs").exists()


@pytest.mark.parametrize(
    ("package", "launcher", "missing", "how"),
    [
        ("submitit", "slurm", "submitit_slurm", SWEEPS),
        ("ray", "ray", "ray", "attn-cli[ray], in a checkout with pip install -e '.[ray]'"),
    ],
)
def test_a_launcher_that_is_not_installed_names_the_extra(
    work, capsys, package: str, launcher: str, missing: str, how: str
) -> None:
    if find_spec(package):
        pytest.skip("it is installed")
    assert work("seed=1,2", f"hydra/launcher={launcher}") == 1
    assert capsys.readouterr().err == (
        f"attn train: hydra/launcher={missing} needs a package that is not installed: install {how}.\n"
    )
