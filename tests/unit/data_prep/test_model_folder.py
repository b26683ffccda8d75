"""Texts are checked against the tokens of the model that is named."""

import json

import pytest
from typer.testing import CliRunner

from data_prep.cli import app


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"added_tokens_decoder": {"7": {"content": "<mine>"}}, "pad_token": "<mine>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_the_command_takes_a_models_folder(model, tmp_path):
    pairs = (("a", "b <mine>"), ("<|im_end|>", "b"))
    entries = [
        {"id": n, "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
        for n, (q, a) in enumerate(pairs)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text(json.dumps(entries))

    def rejected(*options):
        output = tmp_path / "-".join(["out", *(str(len(o)) for o in options)])
        command = ["cambrian", "--data-dir", f"{tmp_path}/data", "--output-dir", str(output)]
        done = CliRunner().invoke(
            app, [*command, "--text-only", "keep", "--workers", "1", *options]
        )
        assert done.exit_code == 0, done.output
        lines = (output / "quarantine.jsonl").read_text().splitlines()
        return [(json.loads(line)["index"], json.loads(line)["reason"]) for line in lines]

    assert rejected() == [(1, "control_token")]
    assert rejected("--tokenizer-path", str(model)) == [(0, "control_token")]
    command = ["cambrian", "--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "none")]
    done = CliRunner().invoke(app, [*command, "--tokenizer-path", str(tmp_path)])
    assert done.exit_code == 1
    assert "has no tokenizer_config.json: expected the folder of a model" in done.output
