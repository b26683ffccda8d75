"""Runs of `dct-vl` in forks of a process that has imported everything: NeMo's imports take longer
than most runs of the tests.

As a script it is that process: it takes a request a line, JSON {"words", "environs", "cwd", "out",
"err"}, forks one child for each of the environs, and answers with their exit statuses.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class WarmStart:
    """Starts runs; the process behind it ends with `close`.

    Args:
        environ: of the process, and of every run beneath its own variables.
        folder: for what the runs print.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environ),
            text=True,
        )

    def run(
        self, words: Sequence[str], *, ranks: int, variables: Mapping[str, str], cwd: Path
    ) -> subprocess.CompletedProcess[str]:
        """`dct-vl WORDS` on so many ranks, with the variables that torchrun sets."""
        out, err = (self.folder / name for name in ("warm_out", "warm_err"))
        request = {
            "words": list(words),
            "environs": [dict(variables) | extra for extra in rank_variables(ranks)],
            "cwd": str(cwd),
            "out": str(out),
            "err": str(err),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        statuses = json.loads(self.process.stdout.readline())
        return subprocess.CompletedProcess(
            list(words), max(statuses), out.read_text(), err.read_text()
        )

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def rank_variables(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each rank of one machine; nothing where there is one."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_WORLD_SIZE": "1",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _serve() -> None:
    import dct_vl.training.fit  # noqa: F401

    # what libraries print while they are imported must not be taken for an answer
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        for name in ("out", "err"):
            Path(request[name]).write_bytes(b"")
        children = [_start(request, environ) for environ in request["environs"]]
        statuses = _wait(children)
        print(json.dumps(statuses), file=answers, flush=True)


def _start(request: dict[str, Any], environ: Mapping[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ.update(environ)
        os.chdir(request["cwd"])
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(request[name], os.O_WRONLY | os.O_APPEND)
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from dct_vl.cli import main

        sys.argv = ["dct-vl", *request["words"]]
        main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(children: Sequence[int]) -> list[int]:
    """Exit statuses; once a rank has failed the others end, as under torchrun."""
    waiting, statuses = set(children), []
    while waiting:
        pid, found = os.wait()
        if pid not in waiting:
            continue
        waiting.discard(pid)
        statuses.append(os.waitstatus_to_exitcode(found))
        if statuses[-1]:
            for other in waiting:
                os.kill(other, 15)
    return [abs(status) for status in statuses]


if __name__ == "__main__":
    _serve()
