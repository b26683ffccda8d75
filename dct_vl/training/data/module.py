"""NeMo's Energon data module with a finite validation set and a loader state that is never lost."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial, partialmethod
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import update_num_microbatches
from megatron.energon import (
    SavableDataLoader,
    WorkerConfig,
    get_savable_loader,
)
from nemo.collections.multimodal.data.energon.base import EnergonMultiModalDataModule
from nemo.utils import logging
from tqdm import tqdm

from dct_vl.errors import RunError
from dct_vl.inputs.batch import DeviceFields
from dct_vl.inputs.data_sets import load_sets
from dct_vl.inputs.shard_reader import pass_over_damage
from dct_vl.runs.config.schema import RunConfig
from dct_vl.training.data.epochs import mixed_epochs, train_dataset
from dct_vl.training.data.loader_processes import (
    WorkerBoard,
    check_shares,
    limit_answers,
    watch,
)
from dct_vl.training.data.task_encoder import ChatTaskEncoder
from dct_vl.training.restart.loader_state import check_streams, redistribute, restore
from dct_vl.training.restart.stop_signals import ignore_in_worker

#: of validation batches that stay in a trainer's memory
KEPT_BYTES = 2**30


def _init_worker(energons: Callable[[int], None], worker_id: int) -> None:
    energons(worker_id)
    ignore_in_worker()
    # Energon's bars, one a process, would tear up the trainer's
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # type: ignore[method-assign]


def _end_loader_processes() -> None:
    for process in multiprocessing.active_children():
        process.kill()


class RepeatedLoader:
    """Goes over a finite loader again and again; every `iter()` starts at its beginning.

    The first batches stay in memory: a validation reads the same ones each time, and reading them
    anew can take longer than the model needs for them.

    Args:
        make_loader: makes a fresh loader. Energon's loaders keep their place between two `iter()`
            calls, so that a used one would go on where the last validation stopped.
        kept_bytes: of tensors at most that stay.
    """

    def __init__(
        self, make_loader: Callable[[], Iterable[DeviceFields]], kept_bytes: int = KEPT_BYTES
    ) -> None:
        self.make_loader = make_loader
        self._room = kept_bytes
        self._kept: list[DeviceFields] = []
        self._kept_all = False

    def __iter__(self) -> Iterator[DeviceFields]:
        while True:
            empty = True
            for batch in self._once():
                empty = False
                yield batch
            if empty:
                raise RunError(
                    "the validation split yields no batch, as too many of its samples were "
                    "rejected: see rejects_val/*.jsonl in the run's folder, or set "
                    "trainer.val_every=0"
                )

    def _once(self) -> Iterator[DeviceFields]:
        known = len(self._kept)
        yield from self._kept[:known]
        if self._kept_all:
            return
        number = 0
        for number, batch in enumerate(self.make_loader(), start=1):
            if number > known:
                self._keep(batch)
                yield batch
        self._kept_all = len(self._kept) == number

    def _keep(self, batch: DeviceFields) -> None:
        size = sum(x.nbytes for x in batch.tensors())
        fits = size <= self._room
        # what comes after a batch that found no room is not kept either
        self._room = self._room - size if fits else -1
        if fits:
            self._kept.append(batch)


class EndlessLoader:
    """The training loader without a length, watched: Lightning would end an epoch, and validate,
    at that length.
    """

    def __init__(self, loader: SavableDataLoader, board: WorkerBoard, timeout_s: float) -> None:
        limit_answers(loader, board, timeout_s)
        self.loader = loader
        self.board = board
        self.timeout_s = timeout_s

    def __iter__(self) -> Iterator[Any]:
        return watch(self.loader, self.board, self.timeout_s)


class ChatDataModule(EnergonMultiModalDataModule):
    """Training on the `train` split for ever, validation on the `val` split from its start.

    Checkpoints hold its state under its name.

    Args:
        task_encoder: for training; a `ChatPackEncoder` where the run packs.
        validation_task_encoder: for validation.
    """

    def __init__(
        self,
        run: RunConfig,
        *,
        task_encoder: ChatTaskEncoder,
        validation_task_encoder: ChatTaskEncoder,
    ) -> None:
        super().__init__(
            path=run.data.path,
            tokenizer=None,
            image_processor=None,
            seq_length=run.data.seq_length,
            micro_batch_size=run.trainer.micro_batch_size,
            global_batch_size=run.trainer.global_batch_size,
            num_workers=run.data.num_workers,
            shuffle_buffer_size=run.data.shuffle_buffer_size,
            max_samples_per_sequence=run.data.max_samples_per_sequence,
            task_encoder=task_encoder,
            validation_task_encoder=validation_task_encoder,
        )
        self.seed = run.seed
        self.data = run.data
        #: packing concerns training only: validation keeps one sample a row, so that its loss
        #: means the same whatever the training does
        self.packing_buffer_size = run.data.packing_buffer_size if run.data.packing else None
        self.mix_epochs = bool(run.data.mix_epochs)
        self.worker_timeout_s = run.data.worker_timeout_s
        self.train_dataloader_object: EndlessLoader | None = None
        self.val_dataloader_object: RepeatedLoader | None = None

    def datasets_provider(
        self, worker_config: WorkerConfig, split: Literal["train", "val"] = "val"
    ) -> Any:
        """Endless shuffled training set, or the finite validation set in its own order."""
        if split == "val":
            dataset = self.validation_task_encoder.build_val_datasets(
                datasets=load_sets(self.data.path_of("val"), "val", worker_config).datasets,
                worker_config=worker_config,
                batch_size=self.micro_batch_size,
                batch_drop_last=True,
            )
            return pass_over_damage(dataset, self.validation_task_encoder.rejects)
        dataset = train_dataset(
            self.path,
            self.task_encoder,
            worker_config,
            batch_size=self.micro_batch_size,
            packing_buffer_size=self.packing_buffer_size,
            shuffle_buffer_size=self.shuffle_buffer_size,
            max_samples_per_sequence=self.max_samples_per_sequence,
            mix_epochs=self.mix_epochs,
        )
        return pass_over_damage(dataset, self.task_encoder.rejects)

    def train_dataloader(self) -> EndlessLoader:
        """Loader of this data-parallel rank; the same object until the end of the run.

        Raises:
            ConfigError: a loader process would have no sample.
        """
        if self.train_dataloader_object is None:
            if self.trainer:
                self.init_global_step = self.trainer.global_step
            self.data_sampler.init_global_step = self.init_global_step
            board = WorkerBoard(self.num_workers)
            self.task_encoder.board = board
            config = self.worker_config(self.num_workers, self.task_encoder)
            dataset = self.datasets_provider(config, "train")
            check_shares(dataset, self.path, config)
            warning = mixed_epochs(dataset, config)
            if warning and os.environ.get("RANK", "0") == "0":
                print(f"warning: {warning}", file=sys.stderr)
            # Energon's own watchdog prints stacks and goes on; `watch` names the process and ends
            loader = get_savable_loader(dataset, watchdog_timeout_seconds=None)
            loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)
            # multiprocessing's own way, a SIGTERM and a wait for ever, no longer ends them
            atexit.register(_end_loader_processes)
            self.train_dataloader_object = EndlessLoader(loader, board, self.worker_timeout_s)
        return self.train_dataloader_object

    def val_dataloader(self) -> RepeatedLoader:
        """Loader of the validation split; the same batches in every validation."""
        if self.val_dataloader_object is None:
            self.val_dataloader_object = RepeatedLoader(self._make_val_loader)
        return self.val_dataloader_object

    def _make_val_loader(self) -> SavableDataLoader:
        # without worker processes: a validation is short, and idle workers cost memory
        config = self.worker_config(0, self.validation_task_encoder)
        return get_savable_loader(self.datasets_provider(config, "val"))

    def worker_config(self, num_workers: int, task_encoder: ChatTaskEncoder) -> WorkerConfig:
        """Energon's view of this rank. Rank r's worker w is number r * num_workers + w of all, so
        that the sample stream stays the same while data-parallel size × num_workers does.

        What fails in a way that `task_encoder` did not foresee goes to its rejects.
        """
        return WorkerConfig(
            rank=parallel_state.get_data_parallel_rank(),
            world_size=parallel_state.get_data_parallel_world_size(),
            num_workers=num_workers,
            data_parallel_group=parallel_state.get_data_parallel_group(),
            seed_offset=self.seed,
            global_error_handler=task_encoder.rejects.record_error,
        )

    def state_dict(self) -> dict[str, Any]:
        """Loader state as a byte tensor: checkpoints are read with torch's weights-only loader,
        which refuses Energon's state classes.
        """
        state = None
        if (
            not parallel_state.get_tensor_model_parallel_rank()
            and not parallel_state.get_context_parallel_rank()
            and parallel_state.is_pipeline_first_stage()
        ):
            # collective over the data-parallel group; one rank of each model replica takes part
            state = self.train_dataloader().loader.save_state_global(global_dst_rank=0)
        done = self.trainer.global_step - self.init_global_step
        payload = {
            "dataloader_state": state,
            "consumed_samples": self.data_sampler.compute_consumed_samples(done),
            "num_workers": self.num_workers,
        }
        buffer = bytearray(pickle.dumps(payload))
        return {"pickled": torch.frombuffer(buffer, dtype=torch.uint8).clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the loader where the checkpoint left it.

        Raises:
            ConfigError: another number of streams than the checkpoint's; see
                `dct_vl.training.restart.loader_state`.
        """
        payload = pickle.loads(state_dict["pickled"].numpy().tobytes())
        states = payload["dataloader_state"]
        num_ranks = parallel_state.get_data_parallel_world_size()
        check_streams(
            ranks_before=len(states),
            workers_before=payload["num_workers"],
            num_ranks=num_ranks,
            num_workers=self.num_workers,
        )
        if len(states) != num_ranks:
            states = redistribute(states, num_ranks=num_ranks, num_workers=self.num_workers)
        restore(self.train_dataloader().loader, states)
        consumed = payload["consumed_samples"]
        self.data_sampler.init_consumed_samples = consumed
        self.data_sampler.prev_consumed_samples = consumed
        update_num_microbatches(consumed_samples=consumed, consistency_check=False)
        logging.info(f"Loader restored at {consumed} consumed samples")
