"""What a run of training consists of, made and checked before the first step (`setup.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from onnxcomp.passes.distill import Settings
from onnxcomp.pytorch.distillation.losses import Objective
from onnxcomp.pytorch.distillation.samples import Feeds, Order, Samples
from onnxcomp.pytorch.distillation.students import Student
from onnxcomp.pytorch.distillation.teacher import Teacher

#: (feeds of one run, a generator seeded by the step) -> feeds of the same shapes and types
Augment = Callable[[Feeds, np.random.Generator], Feeds]


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A student, who teaches it what, and on which samples.

    Attributes:
        student: trained in place.
        teacher: answers to the student's feeds.
        goal: prepared; its own parameters are trained along.
        judged: (the student's output, the teacher's) that agreement is measured on.
        samples: all of them.
        order: which of them train, which judge, and when.
        settings: of the training.
        device: where the student trains.
        augment: changes the feeds of training runs, before teacher and student see them.
    """

    student: Student
    teacher: Teacher
    goal: Objective
    judged: tuple[str, str]
    samples: Samples
    order: Order
    settings: Settings
    device: torch.device
    augment: Augment | None = None

    def feeds(self, rows: np.ndarray, *where: int) -> Feeds:
        """Feeds of a training run; `where` it stands, epoch, step and part, seeds what augments it."""
        feeds = self.samples.feeds(rows)
        if self.augment is None:
            return feeds
        return self.augment(feeds, np.random.default_rng([self.settings.seed, 1, *where]))

    def labels(self, rows: np.ndarray) -> torch.Tensor | None:
        """What cross entropy compares with; None where labels have no weight."""
        labels = self.samples.labels_of(rows) if self.settings.labels_weight else None
        return None if labels is None else torch.from_numpy(labels).to(self.device)
