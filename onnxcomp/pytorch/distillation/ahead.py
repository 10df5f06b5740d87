"""The teacher's answers one batch ahead, in a thread beside the student's step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from onnxcomp.pytorch.distillation.teacher import Feeds, Teacher


def ahead(teacher: Teacher, batches: Iterable[Feeds]) -> Iterator[tuple[Feeds, dict[str, Tensor]]]:
    """Each batch with the teacher's answers, in order; the next one is made while this one is used.

    ONNX Runtime and torch free the interpreter's lock while they compute. The batches are drawn in the
    thread too, one more than was given out: where a run can be resumed, their order must follow from the
    number of the step, not from the state of the iterator.

    What the batches or the teacher raise comes out here, in its turn. Closing the iterator waits for the
    answer in the making and ends the thread.
    """
    source = iter(batches)

    def one() -> tuple[Feeds, dict[str, Tensor]] | None:
        for batch in source:
            return batch, teacher.outputs(batch)
        return None

    with ThreadPoolExecutor(1, "teacher") as thread:
        coming: Future[tuple[Feeds, dict[str, Tensor]] | None] = thread.submit(one)
        while (found := coming.result()) is not None:
            coming = thread.submit(one)
            yield found
