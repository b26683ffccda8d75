"""From environment variables to a torchrun command, or to a refusal before anything starts."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import dct_vl.training.processes.launch
from dct_vl.errors import ConfigError
from dct_vl.runs.config.compose import compose_config
from dct_vl.training.processes.launch import describe, read_machines, torchrun_command

ROOT = Path(__file__).resolve().parents[3]
#: the last of four nodes
FOUR = {"NNODES": "4", "NODE_RANK": "3", "MASTER_ADDR": "head", "MASTER_PORT": "29500"}


@pytest.fixture
def eight_gpus(monkeypatch):
    """A machine's GPUs are the one thing that cannot be had here."""
    monkeypatch.setattr(dct_vl.training.processes.launch, "_count_gpus", lambda: 8)


@pytest.fixture
def no_gpus(monkeypatch):
    monkeypatch.setattr(dct_vl.training.processes.launch, "_count_gpus", lambda: 0)


@pytest.mark.parametrize(
    ("environ", "processes", "on_cpu"),
    [
        ({}, 8, False),
        ({"DEVICES": "auto", "NUM_PROC_PER_NODE": ""}, 8, False),
        ({"DEVICES": "4"}, 4, False),
        ({"DEVICES": "4", "NUM_PROC_PER_NODE": "2"}, 2, False),
        ({"DEVICES": " CPU "}, 1, True),
        ({"DEVICES": "cpu", "NUM_PROC_PER_NODE": "3"}, 3, True),
    ],
)
def test_processes_follow_devices(eight_gpus, environ, processes, on_cpu):
    machines = read_machines(environ)
    assert (machines.processes_per_node, machines.on_cpu) == (processes, on_cpu)
    assert machines.world_size == processes


def test_without_gpus_auto_is_one_process_on_the_cpu(no_gpus):
    machines = read_machines({})
    assert (machines.processes_per_node, machines.on_cpu) == (1, True)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"DEVICES": "9"}, "DEVICES=9, but this machine has 8 CUDA devices: lower it, or set"),
        ({"DEVICES": "two"}, "DEVICES='two'; expected a whole number"),
        ({"DEVICES": "0"}, "DEVICES=0; expected at least 1"),
        ({"DEVICES": "2", "NUM_PROC_PER_NODE": "3"}, "NUM_PROC_PER_NODE=3 is more than DEVICES=2"),
        ({"NNODES": "x"}, "NNODES='x'; expected a whole number"),
        ({"NODE_RANK": "-1"}, "NODE_RANK=-1; expected at least 0"),
        ({"DEVICES": "2,3"}, "DEVICES=2,3; expected how many: name the GPUs in CUDA_VISIBLE"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1 of NNODES=1; expected 0 to 0"),
        ({**FOUR, "NODE_RANK": "4"}, "NODE_RANK=4 of NNODES=4; expected 0 to 3"),
        ({**FOUR, "NODE_RANK": ""}, "NNODES=4 without NODE_RANK: every node needs its own"),
        ({**FOUR, "MASTER_ADDR": ""}, "NNODES=4 without MASTER_ADDR: every node"),
        ({**FOUR, "MASTER_PORT": ""}, "NNODES=4 without MASTER_PORT: every node"),
        ({**FOUR, "MASTER_PORT": "ssh"}, "MASTER_PORT='ssh'; expected a whole number"),
        ({**FOUR, "MASTER_PORT": "0"}, "MASTER_PORT=0; expected at least 1"),
        ({**FOUR, "MASTER_PORT": "70000"}, "MASTER_PORT=70000; expected at most 65535"),
    ],
)
def test_machines_that_cannot_be(eight_gpus, environ, message):
    with pytest.raises(ConfigError, match=message):
        read_machines(environ)


def test_one_node_takes_a_free_port(eight_gpus):
    command = torchrun_command(read_machines({"DEVICES": "2"}), ["seed=7"])
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--nnodes=1", "--nproc-per-node=2", "--rdzv-endpoint=127.0.0.1:0"} <= set(command)
    assert command[-5:] == ["-m", "dct_vl", "fit", "seed=7", "trainer.accelerator=gpu"]


def test_several_nodes_meet_at_the_master(eight_gpus):
    machines = read_machines(FOUR)
    assert machines.world_size == 32
    command = torchrun_command(machines, [])
    assert {"--nnodes=4", "--node-rank=3", "--master-addr=head", "--master-port=29500"} <= set(
        command
    )


@pytest.mark.parametrize(
    ("environ", "processes"),
    [
        (FOUR, 8),
        ({**FOUR, "DEVICES": "auto"}, 8),
        ({**FOUR, "DEVICES": "16"}, 16),
        ({**FOUR, "NUM_PROC_PER_NODE": "16"}, 16),
        ({"MASTER_ADDR": "FIRST_NODE"}, 8),
    ],
)
def test_a_dry_run_for_other_machines_is_for_their_gpus(no_gpus, environ, processes):
    machines = read_machines(environ, dry_run=True)
    assert (machines.processes_per_node, machines.on_cpu) == (processes, False)
    assert torchrun_command(machines, [])[-1] == "trainer.accelerator=gpu"
    shown = describe(compose_config(["data.path=d", "model.path=m"]), machines)
    assert ("on GPU, a guess as this machine has none: DEVICES=N" in shown) == (
        environ.get("DEVICES", "auto") == "auto"
    )
    assert read_machines({**FOUR, "DEVICES": "cpu"}, dry_run=True).on_cpu
    assert read_machines({}, dry_run=True).on_cpu
    assert read_machines(FOUR).on_cpu


def test_the_doctor_stops_what_would_fail_later(shards, tmp_path, capsys):
    """Without --dry-run: the model's folder is empty, so that no process is started."""
    arguments = [f"data.path={shards}", f"model.path={tmp_path}", f"log_dir={tmp_path}"]
    with pytest.raises(ConfigError, match="the doctor found what would stop the run"):
        dct_vl.training.processes.launch.launch(arguments, {"DEVICES": "cpu"})
    assert "has no config.json" in capsys.readouterr().out


def test_a_model_that_is_made_first_must_be_divisible_too(shards, tmp_path):
    arguments = [
        *("model=tiny", f"model.cache_dir={tmp_path}", f"data.path={shards}"),
        *("trainer.tensor_parallel_size=3", f"log_dir={tmp_path}"),
    ]
    with pytest.raises(ConfigError, match="TP_SIZE=3 does not divide the model's"):
        dct_vl.training.processes.launch.launch(
            arguments, {"DEVICES": "cpu", "NUM_PROC_PER_NODE": "3"}
        )


def qwen_launch(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """launch/qwen_launch.sh --dry-run with this interpreter."""
    return subprocess.run(
        ["bash", str(ROOT / "launch" / "qwen_launch.sh"), "--dry-run", *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "DCT_VL_PYTHON": sys.executable,
            "CUDA_VISIBLE_DEVICES": "",
            "DEVICES": "cpu",
            **environ,
        },
    )


@pytest.mark.slow
def test_the_script_prints_what_it_would_start(shards):
    done = qwen_launch(
        "trainer.max_steps=7",
        DATA_PATH=str(shards),
        MODEL_PATH="/m",
        NUM_PROC_PER_NODE="4",
        MBS="2",
        GBS="16",
        TP_SIZE="2",
        TOKENIZER="dct14",
        MINPIXELS="3136",
        MAXPIXELS="50176",
        LOG_DIR="/logs",
        WANDB_PROJECT="wp",
    )
    assert done.returncode == 0, done.stderr
    assert "data parallel         2" in done.stdout
    assert "micro batches a step  4" in done.stdout
    command = shlex.split(done.stdout.splitlines()[-1])
    # what torchrun gets besides, so that the line can be pasted in any folder
    assert command[:3] == ["env", "CUDA_VISIBLE_DEVICES=", "OMP_NUM_THREADS=1"]
    assert command[3].startswith(f"PYTHONPATH={ROOT}")
    for word in (
        *("--nproc-per-node=4", "experiment_name=dct14", "tokenizer=dct14", "model.path=/m"),
        *(f"data.path={shards}", "data.min_pixels=3136", "data.max_pixels=50176"),
        *("trainer.micro_batch_size=2", "trainer.global_batch_size=16", "log_dir=/logs"),
        *("trainer.tensor_parallel_size=2", "trainer.pipeline_parallel_size=1"),
        *("trainer.context_parallel_size=1", "logger.wandb_project=wp", "trainer.max_steps=7"),
        "trainer.accelerator=cpu",
    ):
        assert word in command, word


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"GBS": "5", "MBS": "2"}, "error: GBS=5 is not divisible by MBS=2"),
        ({"TP_SIZE": "2"}, "error: TP_SIZE=2 × PP_SIZE=1 = 2 needs 2 processes"),
        ({"PP_SIZE": "3", "NUM_PROC_PER_NODE": "4"}, "error: 4 processes cannot be divided"),
        ({"CP_SIZE": "2"}, "error: TP_SIZE=1 × PP_SIZE=1 × CP_SIZE=2 = 2 needs 2 processes"),
        ({"MINPIXELS": "9000", "MAXPIXELS": "800"}, "error: MINPIXELS=9000 is more than MAXPIXELS"),
        ({"TOKENIZER": "dtc14"}, "error: unknown tokenizer 'dtc14'; did you mean dct14"),
        ({"DATA_PATH": "/none"}, "error: DATA_PATH=/none does not exist"),
        ({"DEVICES": "64"}, "error: DEVICES=64, but this machine has 0 CUDA devices"),
        ({"NUM_PROC_PER_NODE": "many"}, "error: NUM_PROC_PER_NODE='many'; expected a whole number"),
        ({"MBS": "one"}, "error: Error merging override trainer.micro_batch_size=one"),
    ],
)
def test_the_script_refuses_what_cannot_work(shards, environ, message):
    done = qwen_launch(**{"DATA_PATH": str(shards), "MODEL_PATH": "/m", **environ})
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "torch.distributed.run" not in done.stdout


@pytest.mark.slow
def test_the_command_line_says_how_it_is_used():
    command = [sys.executable, "-m", "dct_vl"]
    usage = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (usage.returncode, " doctor " in usage.stdout) == (0, True)
    wrong = subprocess.run([*command, "fti"], capture_output=True, text=True, cwd=ROOT)
    assert (wrong.returncode, "No such command 'fti'" in wrong.stderr) == (2, True)
    assert "Did you mean 'fit'?" in wrong.stderr
    typed = subprocess.run(
        [*command, "fit", "trainer.max_steps=abc"], capture_output=True, text=True, cwd=ROOT
    )
    assert typed.returncode == 2
    assert typed.stderr.startswith("error: Error merging override trainer.max_steps=abc")
