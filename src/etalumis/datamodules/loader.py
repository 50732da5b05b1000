"""A data loader that gets minibatches ahead of time and knows how long it was waited for."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import forkserver
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from etalumis.datamodules import reading
from etalumis.datamodules.reading import Parcel
from etalumis.execution.signals import start_tracker
from etalumis.networks.packing import TrainingBatch

T = TypeVar("T")
_LOOK_S = 0.5  # between two looks whether to go on waiting
_PATIENCE_S = 10.0  # for a thread to end; processes that it waits for need up to two seconds
_UNDISTURBED = "etalumis.datamodules.undisturbed"  # never imported here, where signals are answered


class Loader(DataLoader):
    """Yields minibatches; those of loader processes are fetched and unwrapped by a thread while another is used.

    The processes serve one iteration at a time: a new one ends the one before.

    Attributes:
        waited: seconds that whoever iterates has spent waiting for a minibatch.
    """

    waited = 0.0
    _ahead: Ahead[TrainingBatch] | None = None

    @classmethod
    def of(cls, data: Dataset[TrainingBatch], places: Any, workers: int, context: Any) -> Loader:
        """A loader of packed minibatches.

        Args:
            data: the minibatches by place.
            places: those to get, in order: a sampler or a list.
            workers: processes that get them; 0 gets them here.
            context: to start the processes with, see :func:`quick_start`.
        """
        return cls(
            data,
            batch_size=None,
            sampler=places,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            multiprocessing_context=context,
            worker_init_fn=reading.ignore_interrupts if workers else None,
            collate_fn=Parcel.wrap if workers else None,  # type: ignore[arg-type]  # gets no lists here
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the position. Lightning asks whether training can go on within an epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""

    def __iter__(self) -> Any:
        if self._ahead is not None:
            self._ahead.close()
        batches: Iterator[Any] = super().__iter__()
        if self.num_workers:
            # In place of the class attribute: the loader forbids changing its own attributes.
            batches = self.__dict__["_ahead"] = Ahead(map(Parcel.unwrap, batches))
        return self._timed(batches)

    def _timed(self, batches: Iterator[TrainingBatch]) -> Iterator[TrainingBatch]:
        try:
            while True:
                started = time.perf_counter()
                batch = _next(batches)
                self.__dict__["waited"] = self.waited + time.perf_counter() - started
                if batch is None:
                    return
                yield batch
        finally:
            if isinstance(batches, Ahead):
                batches.close()


def _next(batches: Iterator[TrainingBatch]) -> TrainingBatch | None:
    try:
        return next(batches, None)
    except (RuntimeError, ConnectionError, EOFError) as error:
        ended = "exited unexpectedly" in str(error) or not isinstance(error, RuntimeError)
        if not ended or not isinstance(batches, Ahead) or str(error).startswith("Caught"):
            raise  # what was met in reading, here or by a process, not a process's end
        raise RuntimeError(
            "a process that reads minibatches was killed, as the system does where memory is short "
            f"({' '.join(str(error).split())}); give data.workers=0 to read in the training process"
        ) from error


class Ahead(Iterator[T]):
    """The items of an iterable, fetched by a thread, at most ``depth`` of them early.

    Args:
        items: where they come from; iterated in the thread.
        depth: how many may wait here.
        cancel: makes ``items`` end what it is at, called on closing.
        waiting: called now and then while there is no item; what it raises leaves :meth:`__next__`.
    """

    def __init__(
        self,
        items: Iterable[T],
        depth: int = 2,
        cancel: Callable[[], None] = lambda: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._ready: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._closed = False
        self._cancel, self._waiting = cancel, waiting
        self._thread = threading.Thread(target=self._fetch, args=(iter(items),), name="minibatches", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        while True:
            try:
                item, error = self._ready.get(timeout=_LOOK_S)
                break
            except Empty:
                self._waiting()
        if error is not None:
            self._ready.put((None, error))  # so that asking again answers the same
            raise error
        self._room.release()
        assert item is not None
        return item

    def close(self) -> None:
        """End the thread and the iteration; items that were fetched are dropped.

        A thread that does not end, as what it calls hangs and can't be cancelled, is left behind; it ends with the
        process.
        """
        self._closed = True
        self._cancel()
        self._room.release()
        self._thread.join(_PATIENCE_S)
        self._ready = SimpleQueue()
        self._ready.put((None, StopIteration()))

    def _fetch(self, items: Iterator[T]) -> None:
        while True:
            self._room.acquire()
            if self._closed:
                getattr(items, "close", lambda: None)()  # in the thread that ran it
                return
            try:
                self._ready.put((next(items), None))
            except BaseException as error:
                self._ready.put((None, error))
                return


def quick_start() -> Any:
    """What starts loader processes: they are forked from one that has imported what they need, and has no threads."""
    start_tracker()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([reading.__name__, _UNDISTURBED])
    forkserver.ensure_running()
    return context
