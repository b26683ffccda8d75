"""The Dockerfile has a pinned base and existing sources, and fetches nothing but packages."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parents[3]
KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "LABEL", "RUN", "SHELL", "USER", "WORKDIR",
}  # fmt: skip


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    parser = DockerfileParser(fileobj=(REPOSITORY / "Dockerfile").open("rb"))
    return [
        (step["instruction"], step["value"])
        for step in parser.structure
        if step["instruction"] != "COMMENT"
    ]


def values(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [value for name, value in steps if name == instruction]


def test_instructions_are_known_and_nothing_is_added_from_urls(steps):
    assert {name for name, _ in steps} <= KNOWN
    assert not any("://" in value for name, value in steps if name in ("COPY", "RUN"))


def test_base_is_nvidias_pytorch_with_a_pinned_tag(steps):
    assert values(steps, "FROM") == ["${BASE_IMAGE}"]
    (base,) = [value for value in values(steps, "ARG") if value.startswith("BASE_IMAGE=")]
    assert re.fullmatch(r"BASE_IMAGE=nvcr\.io/nvidia/pytorch:\d{2}\.\d{2}-py3", base)


def test_copied_paths_exist_and_are_not_ignored(steps):
    ignored = [
        line
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    for value in values(steps, "COPY"):
        *sources, _ = value.split()
        for source in sources:
            assert (REPOSITORY / source).exists(), source
            assert source.removeprefix("./") not in ignored
    assert {".git", ".venv", "outputs"} <= set(ignored)


def test_packages_are_installed_before_the_code_is_copied(steps):
    """Else every change of the code would install gigabytes again."""
    install = next(
        i for i, step in enumerate(steps) if "setup_env.sh" in step[1] and step[0] == "RUN"
    )
    everything = steps.index(("COPY", ". ."))
    assert install < everything
    before = " ".join(value for name, value in steps[:install] if name == "ENV")
    assert 'PIP_CONSTRAINT=""' in before
    assert "DCT_VL_PYTHON" not in before, "setup_env.sh installs nothing where it is set"
    after = " ".join(value for name, value in steps[install:] if name == "ENV")
    assert "DCT_VL_PYTHON=python3" in after


def test_ends_as_the_user_that_was_asked_for(steps):
    assert values(steps, "USER") == ["${USER_ID}:${GROUP_ID}"]
    assert steps[-1] == ("CMD", '["bash"]')
    assert steps.index(("USER", "${USER_ID}:${GROUP_ID}")) == len(steps) - 2


def test_run_steps_are_valid_bash_in_the_stated_shell(steps):
    (shell,) = values(steps, "SHELL")
    program, *flags = json.loads(shell)
    assert (program, flags) == ("/bin/bash", ["-euo", "pipefail", "-c"])
    for script in values(steps, "RUN"):
        checked = subprocess.run([program, "-n", "-c", script], capture_output=True, text=True)
        assert checked.returncode == 0, (script, checked.stderr)
