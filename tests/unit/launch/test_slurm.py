"""launch/slurm.sbatch: its dry run, and a whole job with stand-ins for Slurm's own commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "launch" / "slurm.sbatch"

#: Slurm is not here. srun runs its command as one task; scancel signals that task; scontrol answers
#: with the job's nodes, and notes what else it was asked for.
STAND_INS = {
    "srun": """
options=()
while [[ $1 == -* ]]; do options+=("$1"); shift; done
echo "srun ${options[*]}" >>"$NOTES/calls"
SLURM_NODEID=1 "$@" &
echo $! >"$NOTES/task"
wait $!""",
    "scancel": """
echo "scancel $*" >>"$NOTES/calls"
kill -USR1 "$(cat "$NOTES/task")" """,
    "squeue": "echo $STATE",
    "scontrol": """
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "scontrol $*" >>"$NOTES/calls"; fi""",
    # for launch/qwen_launch.sh
    "python": """
echo "python $*" >>"$NOTES/calls"
echo "$NODE_RANK of $NNODES at $MASTER_ADDR:$MASTER_PORT" >>"$NOTES/rendezvous"
exec "$REAL_PYTHON" "$NOTES/trainer.py" """,
}
#: a trainer that goes on until it is asked to stop
TRAINER = """
import os, signal, sys, time
time.sleep(float(os.environ["IMPORTS_S"]))
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(int(os.environ["LAST"])))
if os.environ["ENDS"]:
    sys.exit(int(os.environ["ENDS"]))
time.sleep(10)
sys.exit(9)
"""


@pytest.fixture
def job(tmp_path):
    """The environment of a job of two nodes."""
    for name, body in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    (tmp_path / "trainer.py").write_text(TRAINER)
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "NOTES": str(tmp_path),
        "DCT_VL_PYTHON": str(tmp_path / "bin" / "python"),
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "REAL_PYTHON": sys.executable,
        "IMPORTS_S": "0",
        "STATE": "RUNNING",
        "LAST": "0",
        "ENDS": "",
    }


def start(job: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments], env=job, text=True, stderr=subprocess.PIPE
    )


def calls(job: dict[str, str]) -> list[str]:
    return (Path(job["NOTES"]) / "calls").read_text().splitlines()


def stop_when_it_trains(
    job: dict[str, str],
    process: subprocess.Popen[str],
    number: int = signal.SIGUSR1,  # as #SBATCH --signal=B:USR1 asks for
) -> int:
    trains = Path(job["NOTES"]) / "rendezvous"
    deadline = time.monotonic() + 20
    while not trains.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # until it listens
    process.send_signal(number)
    return process.wait(20)


def test_every_node_starts_the_launcher_with_its_rank(job):
    process = start(job | {"ENDS": "0", "TOKENIZER": "dct14"}, "trainer.max_steps=7")
    assert process.wait(20) == 0
    step, python = calls(job)
    assert step == "srun --nodes=2 --ntasks-per-node=1 --kill-on-bad-exit=1 --cpu-bind=none"
    assert python.startswith("python -m dct_vl launch experiment_name=dct14 tokenizer=dct14")
    assert python.endswith("trainer.max_steps=7")
    assert (Path(job["NOTES"]) / "rendezvous").read_text() == "1 of 2 at node7:23456\n"


def test_an_experiment_goes_to_the_launcher_itself(job):
    assert start(job | {"ENDS": "0"}, "experiment=scale/x", "seed=1").wait(20) == 0
    assert calls(job)[1] == "python -m dct_vl launch experiment=scale/x seed=1"


def test_variables_hold_for_an_experiment_too(job):
    given = {"ENDS": "0", "GBS": "512", "TOKENIZER": "dct14", "DATA_PATH": "/a b", "MBS": ""}
    assert start(job | given, "experiment=scale/x", "tokenizer=pixel").wait(20) == 0
    step = "python -m dct_vl launch experiment=scale/x tokenizer=pixel"
    assert calls(job)[1] == f"{step} trainer.global_batch_size=512 data.path=/a b"


def test_a_path_that_looks_like_an_experiment_is_none(job):
    assert start(job | {"ENDS": "0"}, "log_dir=/x experiment=y").wait(20) == 0
    assert "experiment_name=dct28_420" in calls(job)[1]


def test_a_job_that_is_stopped_saves_and_goes_back_into_the_queue(job):
    process = start(job)
    assert stop_when_it_trains(job, process) == 0
    assert calls(job)[2:] == ["scancel --signal=USR1 123456", "scontrol requeue 123456"]


@pytest.mark.parametrize(("state", "goes_back"), [("RUNNING", True), ("COMPLETING", False)])
def test_a_preempted_job_goes_back_and_a_cancelled_one_does_not(job, state, goes_back):
    process = start(job | {"STATE": state})
    assert stop_when_it_trains(job, process, signal.SIGTERM) == 0
    assert any("requeue" in call for call in calls(job)) == goes_back


def test_a_job_that_is_stopped_before_it_listens_is_asked_again(job):
    process = start(job | {"IMPORTS_S": "1.5", "REPEAT_S": "0.5"})
    assert stop_when_it_trains(job, process) == 0
    assert calls(job).count("scancel --signal=USR1 123456") > 1
    assert calls(job)[-1] == "scontrol requeue 123456"


@pytest.mark.parametrize(
    "changes", [{"LAST": "3"}, {"SLURM_RESTART_COUNT": "4", "MAX_REQUEUES": "4"}]
)
def test_a_job_that_cannot_go_on_stays_out_of_the_queue(job, changes):
    process = start(job | changes)
    assert stop_when_it_trains(job, process) == int(changes.get("LAST", 1))
    assert not any("requeue" in call for call in calls(job))


def test_a_job_that_fails_or_ends_stays_out_of_the_queue(job):
    assert start(job | {"ENDS": "5"}).wait(20) == 5
    assert len(calls(job)) == 2


def test_it_wants_slurm_and_the_projects_folder(job, tmp_path):
    away = start(job | {"SLURM_SUBMIT_DIR": str(tmp_path)})
    assert "is not the project's folder: run sbatch there" in away.communicate()[1]
    outside = {k: v for k, v in job.items() if not k.startswith("SLURM_")}
    process = start(outside)
    assert "start it with sbatch, or with --dry-run" in process.communicate()[1]
    assert (away.returncode, process.returncode) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["8", ""])
@pytest.mark.parametrize("nodes", ["8", "1"])
def test_the_dry_run_prints_the_commands(shards, nodes, devices):
    """Of the nodes' GPUs, wherever it runs."""
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
        "DCT_VL_PYTHON": sys.executable,
        "NNODES": nodes,
        "DEVICES": devices,
        "GBS": "128",
        "DATA_PATH": str(shards),
    }
    done = subprocess.run(
        # the few samples of these shards would leave 64 ranks without one to validate on
        ["bash", str(SCRIPT), "--dry-run", "trainer.val_every=0"],
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"srun --nodes={nodes} --ntasks-per-node=1")
    assert f"data parallel         {8 * int(nodes)}\n" in done.stdout
    torchrun = done.stdout.splitlines()[-1].split()
    assert {f"--nnodes={nodes}", "--nproc-per-node=8", "trainer.accelerator=gpu"} <= set(torchrun)
    assert ({"--node-rank=0", "--master-port=20000"} <= set(torchrun)) == (nodes == "8")


def test_slurm_reads_what_a_restart_needs():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", SCRIPT.read_text(), re.M))
    assert options["signal"] == "B:USR1@600"
    assert {"requeue", "exclusive"} <= set(options)
    assert options["open-mode"] == "append"
    assert options["ntasks-per-node"] == "1"


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [str(shellcheck), "-x", str(SCRIPT)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
