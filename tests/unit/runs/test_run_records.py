"""What a run leaves behind: step lines, ledger, configuration, checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dct_vl.inputs.batch import Batch, Segments, VisualInputs, Windows
from dct_vl.runs.checkpoint_files import (
    META_NAME,
    best_checkpoints,
    checkpoint_step,
    list_checkpoints,
    newest_checkpoint,
    read_meta,
)
from dct_vl.runs.config.compose import ROOT, compose_config
from dct_vl.runs.ledger import forget_steps_after, read_ledger, summarize
from dct_vl.runs.run_files import (
    ENVIRONMENT_NAME,
    VALIDATION_NAME,
    append_json_line,
    git_state,
    latest_file,
    package_versions,
    read_config,
    read_json_lines,
    read_steps,
    write_provenance,
)
from dct_vl.training.watch.metering import StepMeter


def make_checkpoint(run: Path, step: int, *, finished: bool = True, **meta) -> Path:
    path = run / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    if finished:
        (path / META_NAME).write_text(json.dumps({"step": step, **meta}))
    return path


def test_only_whole_checkpoints_count(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (10, 9, 200):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 300, finished=False)
    (tmp_path / "checkpoints" / "step-00000400-unfinished").mkdir()
    (tmp_path / "checkpoints" / "step-00000400-unfinished" / META_NAME).write_text("{}")
    (tmp_path / "checkpoints" / "step-500").mkdir()
    assert [checkpoint_step(p) for p in list_checkpoints(tmp_path)] == [9, 10, 200]
    assert newest_checkpoint(tmp_path).name == "step-00000200"
    assert read_meta(newest_checkpoint(tmp_path)) == {"step": 200}


def test_other_folders_are_no_checkpoints(tmp_path):
    with pytest.raises(ValueError, match=r"no dct_vl\.json in it"):
        read_meta(tmp_path)
    with pytest.raises(ValueError, match=r"is not a checkpoint .*step-00000100"):
        checkpoint_step(tmp_path)


def test_a_broken_last_line_is_left_out(tmp_path):
    path = tmp_path / "steps.jsonl"
    assert read_json_lines(path) == []
    append_json_line(path, {"step": 1, "loss": 2.5})
    append_json_line(path, {"step": 2, "loss": 2.0})
    with open(path, "ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [entry["step"] for entry in read_json_lines(path)] == [1, 2]
    append_json_line(path, {"step": 3, "loss": 1.5})
    append_json_line(path, {"step": 4, "loss": 1.0})
    assert [entry["step"] for entry in read_json_lines(path)] == [1, 2, 3, 4], "nor swallows more"


def test_steps_done_twice_count_as_done_last(tmp_path):
    for step, loss in ((1, 9.0), (2, 8.0), (3, 7.0), (2, 1.0), (3, 0.5)):
        append_json_line(tmp_path / "steps.jsonl", {"step": step, "loss": loss})
    assert [(e["step"], e["loss"]) for e in read_steps(tmp_path)] == [(1, 9.0), (2, 1.0), (3, 0.5)]


def write_ledger(run: Path, rank: int, *steps: tuple[int, list[str]]) -> None:
    (run / "ledger").mkdir(exist_ok=True)
    for step, keys in steps:
        append_json_line(run / "ledger" / f"dp{rank:04d}.jsonl", {"step": step, "keys": keys})


def test_the_ledger_counts_samples_over_ranks_and_restarts(tmp_path):
    write_ledger(tmp_path, 0, (1, ["a"]), (2, ["lost"]), (2, ["b"]), (4, ["a"]))
    write_ledger(tmp_path, 1, (1, ["c"]), (2, ["lost"]), (2, ["d"]), (4, ["e"]))
    assert read_ledger(tmp_path) == {1: ["a", "c"], 2: ["b", "d"], 4: ["a", "e"]}
    found = summarize(tmp_path)
    assert (found.num_steps, found.num_consumed) == (3, 6)
    assert found.by_times == {1: 4, 2: 1}
    assert found.missing_steps == (3,)
    assert str(found).splitlines() == [
        "6 samples consumed in 3 steps",
        "  seen 1 time: 4 samples",
        "  seen 2 times: 1 samples",
        "  never seen: unknown, the shards of the run are not at hand",
        "  steps without a record: 3",
    ]


def test_validations_that_are_done_again_are_forgotten(tmp_path):
    """Else a checkpoint would be kept, and another dropped, for the loss of an earlier attempt."""
    for step, loss in ((2, 3.0), (4, 1.0)):
        append_json_line(tmp_path / VALIDATION_NAME, {"step": step, "loss": loss})
    forget_steps_after(tmp_path, 2)
    assert read_json_lines(tmp_path / VALIDATION_NAME) == [{"step": 2, "loss": 3.0}]
    kept, _ = (make_checkpoint(tmp_path, step) for step in (2, 4))
    assert best_checkpoints(tmp_path, 1) == [kept]


def test_the_ledger_forgets_what_is_done_again(tmp_path):
    """A restart with fewer data-parallel ranks leaves nothing of the others' lost steps."""
    forget_steps_after(tmp_path, 0)
    for rank, keys in enumerate(("ab", "cd", "ef")):
        write_ledger(tmp_path, rank, (1, [keys[0]]), (2, [keys[1]]))
    write_ledger(tmp_path, 3, (2, ["g"]))
    with open(tmp_path / "ledger" / "dp0001.jsonl", "ab") as file:
        file.write(b'{"step": 3, "ke')
    forget_steps_after(tmp_path, 1)
    assert read_ledger(tmp_path) == {1: ["a", "c", "e"]}
    write_ledger(tmp_path, 0, (2, ["b", "d", "f"]))
    assert read_ledger(tmp_path) == {1: ["a", "c", "e"], 2: ["b", "d", "f"]}
    assert [p.name[:6] for p in sorted((tmp_path / "ledger").iterdir())] == [
        *("dp0000", "dp0001", "dp0002")
    ]
    forget_steps_after(tmp_path, 0)
    assert not list((tmp_path / "ledger").iterdir())


@pytest.mark.slow
def test_the_ledger_command(tmp_path):
    command = [sys.executable, "-m", "dct_vl", "ledger"]
    write_ledger(tmp_path, 0, (1, ["a"]))
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("1 samples consumed in 1 steps")
    none = subprocess.run([*command, ROOT], capture_output=True, text=True, cwd=ROOT)
    assert (none.returncode, "has no ledger" in none.stderr) == (2, True)


def test_the_configuration_reads_back(tmp_path):
    run = compose_config(["data.path=d", "model.path=m", "tokenizer=dct28_420", "optim.lr=3e-5"])
    write_provenance(run, tmp_path / "new")
    assert read_config(tmp_path / "new") == run
    facts = json.loads((tmp_path / "new" / "environment.json").read_text())
    assert facts["packages"] == package_versions()
    assert facts["packages"]["megatron-core"]
    assert facts["git"].keys() == git_state().keys()
    with pytest.raises(ValueError, match=r"has no config\.yaml"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "data:\n  pa", "a: [1", "nonsense: 3\n", "seed: many\n"])
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read \(.*\): it is cut off"):
        read_config(tmp_path)


def test_a_resumed_run_keeps_the_configurations_before(tmp_path):
    """Each start that differs has its file; what is read is the latest."""

    def start(resumed_at: int, lr: str):
        run = compose_config(["data.path=d", "model.path=m", f"optim.lr={lr}"])
        write_provenance(run, tmp_path, resumed_at=resumed_at)
        assert read_config(tmp_path) == run
        return sorted(path.name for path in tmp_path.glob("config*"))

    first, second = "config.yaml", "config-resumed-00000050.yaml"
    third = "config-resumed-00000080.yaml"
    assert start(0, "1e-5") == [first]
    assert start(20, "1e-5") == [first], "nothing differs"
    assert start(50, "2e-5") == [second, first]
    text = (tmp_path / second).read_text()
    assert start(60, "2e-5") == [second, first]
    assert start(80, "1e-5") == [second, third, first], "back to the first one's"
    assert (tmp_path / second).read_text() == text
    assert start(50, "3e-5") == [second, first], "step 50 and all after it are done again"
    assert start(50, "1e-5") == [first]
    start(50, "2e-5")
    assert start(0, "2e-5") == [first], "a fresh run in the folder of one without a checkpoint"
    assert not list(tmp_path.glob("environment-*"))


def test_a_resumed_run_says_where_its_code_changed(tmp_path, monkeypatch):
    run = compose_config(["data.path=d", "model.path=m"])
    write_provenance(run, tmp_path)
    monkeypatch.setattr(sys, "argv", ["other", "command"])
    write_provenance(run, tmp_path, resumed_at=7)
    later = json.loads(latest_file(tmp_path, ENVIRONMENT_NAME).read_text())
    assert later["command"] == ["other", "command"]
    first = json.loads((tmp_path / ENVIRONMENT_NAME).read_text())
    assert first["command"] != later["command"]


def test_a_meter_sums_micro_batches():
    meter = StepMeter()
    for key in ("a", "b"):
        meter.add(
            Batch(
                input_ids=torch.zeros((1, 12), dtype=torch.int64),
                position_ids=torch.zeros((3, 1, 12), dtype=torch.int64),
                loss_mask=torch.tensor([[0.0, 1.0, 1.0] + 9 * [0.0]]),
                visual=VisualInputs(
                    cells=torch.zeros(16, 1),
                    positions=torch.zeros(16, 2),
                    segments=Segments.of([12, 4]),
                    grids=torch.zeros(2, 3),
                    token_indices=torch.arange(4),
                    windows=Windows(order=torch.arange(4), segments=Segments.of([8, 4, 4])),
                ),
                sample_keys=(key,),
                sample_lengths=(9,),
            )
        )
    assert meter == StepMeter(
        num_samples=2,
        num_text_tokens=10,
        num_visual_tokens=8,
        num_padding_tokens=6,
        num_answer_tokens=4,
        num_cells=32,
        num_cell_pairs=2 * (12**2 + 4**2),
        num_window_pairs=2 * (8**2 + 4**2 + 4**2),
        num_token_pairs=2 * 9**2,
        sample_keys=["a", "b"],
    )
