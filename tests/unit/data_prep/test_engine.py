import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from raw_set import entry, jpeg, output_bytes, write_json, write_tar
from rich.console import Console

from data_prep.engine import EngineError, InProcessEngine, ProcessEngine
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


def kill_workers(times: int, after_s: float, done: threading.Event) -> None:
    """SIGKILL a worker, as the kernel does when memory runs out, once it has worked a while."""
    while times and not done.is_set():
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                a_worker = "spawn_main" in " ".join(child.cmdline())
                if a_worker and child.cpu_times().user > after_s:
                    child.kill()
                    times -= 1
                    break
        time.sleep(0.01)


def run_with_killer(one: Job, times: int, after_s: float) -> None:
    done = threading.Event()
    killer = threading.Thread(target=kill_workers, args=(times, after_s, done))
    killer.start()
    try:
        run(one, ProcessEngine(2), Reporter(Console(quiet=True)))
    finally:
        done.set()
        killer.join()


def test_shards_of_a_lost_worker_are_made_again(work, tmp_path):
    run(job(work, tmp_path / "calm"), InProcessEngine(), Reporter(Console(quiet=True)))
    run_with_killer(job(work, tmp_path / "killed"), times=1, after_s=0.6)
    assert output_bytes(tmp_path / "calm") == output_bytes(tmp_path / "killed")


def test_workers_that_always_die_end_the_run(work, tmp_path):
    with pytest.raises(EngineError, match=r"workers died 3 times, with \d+ shards to go"):
        run_with_killer(job(work, tmp_path / "out"), times=100, after_s=0.1)


def test_ticks_add_up(work, tmp_path):
    ticks = []

    class Listening(ProcessEngine):
        def run(self, tasks, on_tick):
            return super().run(tasks, lambda tick: (ticks.append(tick), on_tick(tick)))

    run(job(work, tmp_path / "out"), Listening(2), Reporter(Console(quiet=True)))
    assert sum(tick.images for tick in ticks) == NUM_IMAGES
    assert sum(tick.source_bytes for tick in ticks) == sum(
        len(jpeg(i, SIZE)) for i in range(NUM_IMAGES)
    )


def test_one_worker_needs_no_pool():
    with pytest.raises(ValueError, match="1 workers; expected at least 2"):
        ProcessEngine(1)
