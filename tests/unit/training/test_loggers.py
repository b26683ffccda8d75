"""Restarts go on with the same W&B run; a run that begins anew is another one."""

from __future__ import annotations

import pytest

import dct_vl.training.trainer
from dct_vl.runs.config.compose import compose_config
from dct_vl.runs.run_files import begin_wandb_run
from dct_vl.training.trainer import build_loggers

SETTINGS = ("data.path=d", "model.path=m", "experiment_name=e", "logger.tensorboard=false")


@pytest.fixture
def run():
    return compose_config([*SETTINGS, "logger.wandb_project=p"])


@pytest.fixture
def asked(monkeypatch):
    """What W&B's logger is asked for; the package is none of this project's."""
    calls = []

    def logger(**arguments):
        calls.append(arguments)
        return object()

    monkeypatch.setattr(dct_vl.training.trainer, "WandbLogger", logger)
    return calls


def test_a_restart_goes_on_with_the_same_run(run, asked, tmp_path):
    for _ in range(2):
        build_loggers(run, tmp_path)
    begin_wandb_run(tmp_path)
    build_loggers(run, tmp_path)
    first, again, anew = (call["id"] for call in asked)
    assert first == again != anew
    assert len(first) == 8
    assert {call["resume"] for call in asked} == {"allow"}
    assert asked[0] == {**asked[0], "project": "p", "name": "e", "save_dir": tmp_path}


def test_ranks_that_do_not_log_make_no_id(run, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    build_loggers(run, tmp_path)
    assert asked[0]["id"] is None
    assert not list(tmp_path.iterdir())


def test_a_run_of_which_a_kill_left_no_id_gets_one(run, asked, tmp_path):
    (tmp_path / "wandb-id.txt").write_text("")
    build_loggers(run, tmp_path)
    assert (tmp_path / "wandb-id.txt").read_text().strip() == asked[0]["id"]


def test_wandb_itself_takes_the_id(run, tmp_path, monkeypatch):
    """Without a network; where somebody has installed it."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = []
    for _ in range(2):
        (logger,) = build_loggers(run, tmp_path)
        logger.log_metrics({"loss": 1.0}, step=1)
        found.append(logger.experiment.id)
        wandb.finish()
    assert found == [(tmp_path / "wandb-id.txt").read_text().strip()] * 2
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{found[0]}"))) == 2
