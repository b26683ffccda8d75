"""Which checkpoint a run goes on from, and what is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dct_vl.errors import ConfigError
from dct_vl.runs.checkpoint_files import META_NAME
from dct_vl.runs.config.compose import ROOT, compose_config
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.run_files import CONFIG_NAME, claim, run_dir
from dct_vl.training.restart.resume import (
    RunFinished,
    began_at,
    find_resume,
    stream_settings,
    tensor_settings,
    with_epochs_of,
)


def make_checkpoint(run: Path, step: int, **meta) -> Path:
    path = run / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / META_NAME).write_text(json.dumps({"step": step, **meta}))
    return path


@pytest.fixture
def find(tmp_path):
    """find_resume of a run with tokenizer dct14 and 100 steps, and a checkpoint at step 50."""
    meta = tmp_path / "d" / ".nv-meta"
    meta.mkdir(parents=True)
    (meta / ".info.json").write_text("{}")
    (meta / "split.yaml").write_text("split_parts: {}")

    def compose(*overrides: str):
        settings = [f"data.path={tmp_path}/d", "model.path=m", f"log_dir={tmp_path}"]
        more = ["experiment_name=run", "tokenizer=dct14", "trainer.max_steps=100", *overrides]
        return compose_config([*settings, *more])

    loader = {"data_parallel_size": 1, "data.num_workers": 2}
    make_checkpoint(tmp_path / "run", 50, **stream_settings(compose()), **loader)

    def call(*overrides: str, data_parallel_size: int = 1):
        run = compose(*overrides)
        return find_resume(run, run_dir(run), data_parallel_size)

    call.compose = compose
    return call


def write_config(run: RunConfig, folder: Path) -> None:
    (folder / CONFIG_NAME).write_text(OmegaConf.to_yaml(asdict(run)))


def test_a_run_goes_on_from_its_newest_checkpoint(find, tmp_path):
    made = tmp_path / "run" / "checkpoints" / "step-00000050"
    assert find() == made
    assert find(f"trainer.resume={made}") == made
    assert find("experiment_name=other") is None
    assert find("experiment_name=other", "trainer.resume=never") is None
    assert find("experiment_name=other", f"trainer.resume={made}") == made
    assert find("trainer.tensor_parallel_size=2", "model.path=elsewhere") == made


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer=pixel", "was trained with tokenizer .*dct14.*, this run has .*pixel"),
        ("tokenizer.luma_keep=10", "was trained with tokenizer"),
        ("seed=7", "was trained with seed = 1234, this run has 7: set it back"),
        ("data.num_workers=3", r"= 2 streams, this run has 1 × 3: .*set data\.num_workers=2"),
        ("trainer.global_batch_size=8", r"with trainer\.global_batch_size = 4, this run has 8"),
        ("trainer.max_steps=50", "is at step 50 already and this run ends at 50: raise"),
        ("trainer.stop_at_step=20", r"this run ends at 20: raise trainer\.stop_at_step"),
        ("trainer.resume=never", "already holds a run, at step 50: use another experiment_name"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(find, override, message):
    with pytest.raises(ConfigError, match=message):
        find(override)


def test_a_finished_run_is_said_to_be_finished(find, tmp_path):
    """As a job that comes back from the queue after its end; a folder may have moved meanwhile."""
    made = tmp_path / "run" / "checkpoints" / "step-00000050"
    write_config(find.compose("trainer.max_steps=50"), tmp_path / "run")
    message = r"run is finished at step 50, nothing is left to do: raise trainer\.max_steps to go"
    for more in ((), (f"trainer.resume={made}",), (f"log_dir={tmp_path}/../{tmp_path.name}",)):
        with pytest.raises(RunFinished, match=message):
            find("trainer.max_steps=50", *more)
    assert find("trainer.max_steps=60") == made
    write_config(find.compose("trainer.stop_at_step=50"), tmp_path / "run")
    with pytest.raises(RunFinished, match=r"raise trainer\.stop_at_step"):
        find("trainer.stop_at_step=50")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=0.5", r"\(other than at its latest start: optim\.lr 0\.5 instead of 1e-05\)"),
        ("trainer.max_steps=40", r"ends at 40: .* start: trainer\.max_steps 40 instead of 50\)"),
        ("model.path=x", r"model\.path x instead of m"),
        ("seed=7", "was trained with seed"),
        ("experiment_name=copy", "is at step 50 already and this run ends at 50: raise"),
    ],
)
def test_a_finished_run_with_other_settings_is_refused(find, tmp_path, override, message):
    write_config(find.compose("trainer.max_steps=50"), tmp_path / "run")
    made = tmp_path / "run" / "checkpoints" / "step-00000050"
    with pytest.raises(ConfigError, match=message):
        find("trainer.max_steps=50", override, f"trainer.resume={made}")


def test_a_finished_run_whose_settings_are_unknown_is_refused(find):
    with pytest.raises(ConfigError, match=r"latest start: what config\.yaml says, which is"):
        find("trainer.max_steps=50")


@pytest.mark.parametrize(("said", "mixes"), [(None, True), (True, True), (False, False)])
def test_epochs_are_mixed_as_in_the_checkpoint(find, tmp_path, said, mixes):
    """One that does not say is of a time when all runs mixed them."""
    made = tmp_path / "run" / "checkpoints" / "step-00000050"
    meta = json.loads((made / META_NAME).read_text())
    assert meta.pop("data.mix_epochs") is False
    (made / META_NAME).write_text(
        json.dumps(meta | ({} if said is None else {"data.mix_epochs": said}))
    )
    write_config(find.compose("trainer.max_steps=50"), tmp_path / "run")
    assert find() == made
    assert with_epochs_of(find.compose(), made).data.mix_epochs is mixes
    assert with_epochs_of(find.compose(), None).data.mix_epochs is False
    with pytest.raises(RunFinished):
        find("trainer.max_steps=50")
    other = "false" if mixes else "true"
    with pytest.raises(
        ConfigError, match=rf"trained with data\.mix_epochs = {mixes}, this run has"
    ):
        find(f"data.mix_epochs={other}")


def test_a_folder_that_is_no_checkpoint_is_refused(find):
    message = r"trainer\.resume=/none: /none is not a checkpoint of this project"
    with pytest.raises(ConfigError, match=message):
        find("experiment_name=other", "trainer.resume=/none")


def test_ranks_may_change_where_streams_do_not(find):
    assert find("data.num_workers=1", data_parallel_size=2)
    with pytest.raises(ConfigError, match=r"= 2 streams, this run has 2 × 2.*num_workers=1"):
        find(data_parallel_size=2)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(find, tmp_path, capsys):
    run = tmp_path / "run"
    sound = run / "checkpoints" / "step-00000050"
    newer = make_checkpoint(run, 60, files={"common.pt": [3, None]})
    assert find() == sound
    warning = capsys.readouterr().err
    assert "step-00000060 is damaged: common.pt is missing; going on from step-00000050" in warning
    with pytest.raises(ConfigError, match=r"resume=.*step-00000060: common\.pt is missing"):
        find(f"trainer.resume={newer}")
    (sound / META_NAME).write_text('{"step"')
    with pytest.raises(ConfigError, match=r"can be gone on from .*cannot be re"):
        find()


def test_other_data_and_older_steps_are_refused(find, tmp_path):
    older = tmp_path / "run" / "checkpoints" / "step-00000050"
    make_checkpoint(tmp_path / "run", 60)
    with pytest.raises(ConfigError, match="holds later steps than"):
        find(f"trainer.resume={older}")
    (tmp_path / "d" / ".nv-meta" / "split.yaml").write_text("split_parts: {train: []}")
    with pytest.raises(ConfigError, match="was trained with data = "):
        find("experiment_name=other", f"trainer.resume={older}")


def test_a_checkpoint_may_be_named_in_another_way(find, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = Path("run") / "checkpoints" / "step-00000050"
    assert find(f"trainer.resume={relative}") == relative


def test_the_same_command_goes_on_with_what_began_elsewhere(find, tmp_path):
    """After a preemption: the run holds checkpoints of its own by then."""
    origin = tmp_path / "run" / "checkpoints" / "step-00000050"
    meta = json.loads((origin / META_NAME).read_text())
    (origin / META_NAME).write_text(json.dumps({**meta, "id": "abc"}))
    again = ("experiment_name=other", f"trainer.resume={origin}")
    assert find(*again) == origin
    settings = {name: value for name, value in meta.items() if name != "step"}
    own = make_checkpoint(tmp_path / "other", 60, **settings, began_at="abc")
    assert find(*again) == own
    assert began_at(origin, tmp_path / "other") == began_at(own, tmp_path / "other") == "abc"
    assert began_at(None, tmp_path / "other") is None
    (origin / META_NAME).write_text(json.dumps({**meta, "id": "another"}))
    with pytest.raises(ConfigError, match="already holds a run, at step 60"):
        find(*again)


def test_a_model_of_other_sizes_is_refused(find, tmp_path, tiny_model, tiny_model_25):
    origin = tmp_path / "run" / "checkpoints" / "step-00000050"
    meta = json.loads((origin / META_NAME).read_text())
    run = compose_config(["data.path=d", f"model.path={tiny_model}", "tokenizer=dct14"])
    tuning = json.loads(json.dumps(tensor_settings(run)))
    (origin / META_NAME).write_text(json.dumps({**meta, "tuning": tuning}))
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_model)
    assert find(f"model.path={moved}") == origin
    with pytest.raises(ConfigError, match=r"with a model of the sizes = .*this run has"):
        find(f"model.path={tiny_model_25}")


def test_a_run_does_not_begin_anew_where_its_only_checkpoint_is_damaged(find, tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-00000050" / META_NAME).unlink()
    with pytest.raises(
        ConfigError, match=r"can be gone on from \(step-00000050 is damaged: .* no "
    ):
        find()


CLAIM = """
import os, sys, time
from pathlib import Path
from dct_vl.runs.run_files import claim
claim(Path(sys.argv[1]))
if not os.fork():
    time.sleep(60)
print("claimed", flush=True)
time.sleep(60)
"""


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    """Until the first one is killed, whose loader processes may live on for a while."""
    command = [sys.executable, "-c", CLAIM, str(tmp_path / "run")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True
    )
    try:
        assert first.stdout.readline() == "claimed\n"
        with pytest.raises(ConfigError, match=rf"another process trains there .*pid {first.pid}\)"):
            claim(tmp_path / "run")
        first.kill()
        first.wait()
        claim(tmp_path / "run")
        claim(tmp_path / "run")
    finally:
        os.killpg(first.pid, 9)


def test_states_have_the_names_that_older_checkpoints_hold():
    """Lightning stores states by the names of classes; with others a checkpoint loses them."""
    from dct_vl.training.data.module import ChatDataModule
    from dct_vl.training.watch.guard_rails import GuardRails

    assert ChatDataModule.__qualname__ == "ChatDataModule"
    assert GuardRails.state_key.fget(object.__new__(GuardRails)) == "GuardRails"
