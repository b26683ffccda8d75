"""The doctor finds, in seconds, what would stop a run; each finding says what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import dct_vl.training.processes.doctor
from dct_vl.runs.config.compose import ROOT, compose_config
from dct_vl.training.processes.doctor import (
    DECISIVE,
    check_disk,
    check_model,
    check_versions,
    examine,
    read_pins,
    weights_size,
)


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def failures(path: Path) -> dict[str, str]:
    return {f.what: f.detail for f in check_model(str(path)) if f.status == "FAIL"}


def write_pins(path: Path, **changed: str) -> Path:
    pins = {name: version(name).split("+")[0] for name in DECISIVE} | changed
    path.write_text("# pins\n" + "".join(f"{name}=={pin}\n" for name, pin in pins.items()))
    return path


@pytest.mark.parametrize(
    ("kind", "name"), [("tiny_model", "Qwen2-VL"), ("tiny_model_25", "Qwen2.5-VL")]
)
def test_a_sound_model_passes(kind, name, request):
    findings = list(check_model(str(request.getfixturevalue(kind))))
    assert [f.status for f in findings] == ["ok", "ok", "ok", "ok"]
    assert findings[0].detail == name
    assert "1 files, 0.00 GiB" in findings[1].detail


def test_weights_that_are_a_pointer(model):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4400000000\n"
    (model / "model.safetensors").write_text(pointer)
    assert failures(model) == {
        "weights": f"model.safetensors has {len(pointer)} bytes (a git-lfs pointer?): "
        f"run git lfs pull in {model}"
    }


def test_weights_that_are_missing(model):
    (model / "model.safetensors").unlink()
    assert "model.safetensors is missing: run git lfs pull" in failures(model)["weights"]


def test_every_shard_of_an_index_is_looked_for(model):
    weight_map = {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = failures(model)["weights"]
    assert "one.safetensors is missing; two.safetensors is missing" in found


def text_template(model: Path) -> None:
    """As Qwen2.5-VL's folders on the hub: one for text beside the tokenizer."""
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    plain = "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content }}{% endfor %}"
    path.write_text(json.dumps({**config, "chat_template": plain}))


def test_a_template_that_shows_no_image(model):
    text_template(model)
    assert failures(model) == {}, "the processor's comes first"
    for kept in model.glob("chat_template.*"):
        kept.unlink()
    found = failures(model)["chat template"]
    assert found.startswith(f"the chat template of {model} cannot render an image (TypeError: ")
    assert "it is one for text. Fetch chat_template.json of Qwen" in found


def test_tokenizer_files_that_are_missing(model):
    (model / "merges.txt").unlink()
    (model / "preprocessor_config.json").unlink()
    found = failures(model)["tokenizer files"]
    assert found == "missing: merges.txt, preprocessor_config.json; fetch them again"


def test_another_model_or_none(model, tmp_path):
    (model / "config.json").write_text('{"model_type": "llama"}')
    assert "is a llama; expected qwen2_vl" in failures(model)["model"]
    (model / "config.json").write_text('{"model_type": "qwen2_vl"}')
    assert "hidden_size is missing; " in failures(model)["model"]
    (model / "config.json").write_text("[")
    assert "Expecting value" in failures(model)["model"]
    assert "has no config.json: clone Qwen/Qwen2-VL" in failures(tmp_path / "none")["model"]


def test_versions_against_pins(tmp_path):
    good = list(check_versions(write_pins(tmp_path / "pins.txt")))
    assert [f.status for f in good] == ["ok"] * (len(DECISIVE) + 1)
    pins = write_pins(
        tmp_path / "pins.txt", **{"megatron-core": "0.1.2", "numpy": "0.9", "no-such-package": "1"}
    )
    found = {f.what: f for f in check_versions(pins)}
    core = found["megatron-core"]
    assert core.status == "FAIL"
    assert core.detail.endswith("expected 0.1.2: pip install 'megatron-core==0.1.2'")
    others = found["other packages"]
    assert others.status == "warn"
    assert f"numpy {version('numpy')} (pinned 0.9)" in others.detail
    assert "no-such-package missing (pinned 1)" in others.detail
    assert found["transformers"].status == "ok"


def test_without_cuda_the_pins_of_the_cpu_environment_count():
    others = next(f for f in check_versions() if f.what == "other packages")
    assert others.status == "ok", others.detail
    assert others.detail.endswith("as pinned in cpu.txt")


def test_pins_of_other_pythons_are_left_out(tmp_path):
    path = tmp_path / "pins.txt"
    path.write_text('a==1; python_version >= "3.0"\nB_c==2; python_version < "3.0"\nd==3\n')
    assert read_pins(path) == {"a": "1", "d": "3"}


def test_the_projects_pins_name_every_decisive_package():
    for name in ("gpu.txt", "cpu.txt"):
        assert set(DECISIVE) <= read_pins(ROOT / "constraints" / name).keys()


def test_disk_for_checkpoints(model, tmp_path):
    run = compose_config([f"model.path={model}", "data.path=d", f"log_dir={tmp_path}/a/b"])
    assert check_disk(run).status == "ok"
    with open(model / "model.safetensors", "r+b") as file:
        # sparse: takes no room itself
        file.truncate(shutil.disk_usage(tmp_path).free // 10)
    assert weights_size(model) > 2**30 / 10
    found = check_disk(run)
    assert found.status == "warn"
    assert "lower trainer.keep_last" in found.detail
    with open(model / "model.safetensors", "r+b") as file:
        file.truncate(shutil.disk_usage(tmp_path).free // 2)
    found = check_disk(run)
    assert found.status == "FAIL"
    assert "set LOG_DIR elsewhere" in found.detail


def test_a_file_is_no_folder_for_runs(model, tmp_path):
    (tmp_path / "logs").touch()
    run = compose_config([f"model.path={model}", "data.path=d", f"log_dir={tmp_path}/logs"])
    assert check_disk(run).detail == f"{tmp_path}/logs is a file: set LOG_DIR elsewhere"


def test_what_is_logged_to_must_be_there(model, shards, tmp_path, capsys, monkeypatch):
    def without_wandb(name: str) -> str:
        if name == "wandb":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(dct_vl.training.processes.doctor, "version", without_wandb)
    settings = [f"model.path={model}", f"log_dir={tmp_path}", f"data.path={shards}"]
    assert not examine(compose_config([*settings, "logger.wandb_project=p"]), on_cpu=True)
    assert "FAIL wandb" in capsys.readouterr().out
    assert examine(compose_config(settings), on_cpu=True)


def test_examine_prints_all_and_decides(model, shards, tmp_path, capsys):
    settings = [f"model.path={model}", f"log_dir={tmp_path}"]
    assert examine(compose_config([*settings, f"data.path={shards}"]), on_cpu=True)
    printed = capsys.readouterr().out
    for what in ("python", "nemo-toolkit", "torch", "data", "weights", "tokenizer files", "disk"):
        assert f"ok   {what}" in printed
    assert not examine(compose_config([*settings, f"data.path={tmp_path}"]), on_cpu=True)
    assert "FAIL data" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_exits_with_the_verdict(model, shards):
    (model / "vocab.json").unlink()
    command = [sys.executable, "-m", "dct_vl", "doctor"]
    settings = [f"model.path={model}", f"data.path={shards}"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "FAIL tokenizer files   missing: vocab.json" in done.stdout
    assert subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0
