import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from raw_set import entry, jpeg, output_bytes, write_json, write_tar
from rich.console import Console

from data_prep.executor import ExecutorError, InProcessExecutor, ProcessExecutor
from data_prep.options import Options
from data_prep.progress import Reporter
from data_prep.run import Job, run

NUM_IMAGES = 160
SIZE = (640, 480)


def job(data: Path, output: Path) -> Job:
    return Job(
        data_dir=data, output_dir=output, json=None, options=Options(shard_size=8, reencode=True)
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Images that keep two workers busy for a second or two."""
    data = tmp_path_factory.mktemp("data")
    names = [f"s/{i}.jpg" for i in range(NUM_IMAGES)]
    write_tar(data / "s.tar", {name: jpeg(i, SIZE) for i, name in enumerate(names)})
    write_json(data, [entry(name, name) for name in names])
    return data


def spawned() -> list[psutil.Process]:
    """Children of this process that multiprocessing started afresh."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill_a_worker(others: list[psutil.Process]) -> bool:
    """SIGKILL a worker of this process, as the kernel does when memory runs out; not one that
    other tests of this process have started and still need.
    """
    for child in spawned():
        with suppress(psutil.NoSuchProcess):
            if child not in others:
                child.kill()
                return True
    return False


class Watched(ProcessExecutor):
    """Notes the records and the ticks that pass; may kill a worker behind the first record."""

    def __init__(self, *, kill: bool = False) -> None:
        super().__init__(2)
        self.kill = kill
        self.records, self.ticks = [], []

    def run(self, tasks, on_tick):
        others = spawned()
        for record in super().run(tasks, lambda tick: (self.ticks.append(tick), on_tick(tick))):
            self.records.append(record.number)
            if self.kill and len(self.records) == 1:
                assert kill_a_worker(others)
            yield record


def test_shards_of_a_lost_worker_are_made_again(work, tmp_path):
    run(job(work, tmp_path / "calm"), InProcessExecutor(), Reporter(Console(quiet=True)))
    engine = Watched(kill=True)
    run(job(work, tmp_path / "killed"), engine, Reporter(Console(quiet=True)))
    assert output_bytes(tmp_path / "calm") == output_bytes(tmp_path / "killed")
    assert sorted(engine.records) == list(range(20)), "finished ones are not made again"


def test_workers_that_always_die_end_the_run(work, tmp_path):
    over = threading.Event()
    others = spawned()

    def kill_on_and_on():
        while not over.is_set():
            kill_a_worker(others)
            time.sleep(0.05)

    killer = threading.Thread(target=kill_on_and_on)
    killer.start()
    try:
        with pytest.raises(ExecutorError, match=r"workers died 3 times, with \d+ shards to go"):
            run(job(work, tmp_path / "out"), ProcessExecutor(2), Reporter(Console(quiet=True)))
    finally:
        over.set()
        killer.join()


def test_ticks_add_up(work, tmp_path):
    engine = Watched()
    run(job(work, tmp_path / "out"), engine, Reporter(Console(quiet=True)))
    assert sum(tick.images for tick in engine.ticks) == NUM_IMAGES
    assert sum(tick.source_bytes for tick in engine.ticks) == sum(
        len(jpeg(i, SIZE)) for i in range(NUM_IMAGES)
    )


def test_one_worker_needs_no_pool():
    with pytest.raises(ValueError, match="1 workers; expected at least 2"):
        ProcessExecutor(1)
