"""Make ready what is measured: packs for the occasion, what is fed, and every configuration with both."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

from onnxcomp.bench import packs, statistics
from onnxcomp.bench.environment import usable_cores
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.job import Job
from onnxcomp.bench.packs import Served
from onnxcomp.plan.configuration import KINDS, Configuration, candidates
from onnxcomp.plan.serving import Serving
from onnxcomp.settings import SessionSettings

ModelPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feeding:
    """What is fed, as `onnxcomp.plan` takes it."""

    data: ModelPath | None
    sizes: Mapping[str, int] | None
    batch: int | Sequence[int] | None
    seed: int

    @property
    def sent(self) -> list[tuple[int, int]]:
        """(samples, requests) of a run."""
        if self.batch is None:
            return [(1, 1)]
        return [(n, n) for n in ([self.batch] if isinstance(self.batch, int) else self.batch)]

    def feeds(self, served: Sequence[Served], session: SessionSettings, batch: int) -> Feeds:
        """Batches that every model has run on."""
        job = Job(
            paths=tuple(one.path for one in served),
            names=tuple(one.name for one in served),
            provider="cpu",
            scenario="plan",
            data=self.data,
            batch=batch,
            sizes=self.sizes,
            settings=session,
            seconds=1.0,
            seed=self.seed,
            delta=statistics.DELTA,
            max_runs=1,
            bind=None,
            done=0.0,
            share=0.0,
        )
        return job.feeds().few()


@contextlib.contextmanager
def packed(given: Sequence[Served], sizes: Mapping[str, int] | None, *, wanted: bool) -> Iterator[Sequence[Served]]:
    """The models, and where it is wanted a pack of each, which is gone at the end."""
    with packs.made(given, workers=2, sizes=sizes) if wanted else contextlib.nullcontext(given) as served:
        yield served


def packable(session: SessionSettings) -> bool:
    """Whether a pack, which is optimized as ORT does by default, is the model that these settings ask for."""
    return dataclasses.replace(session, threads=1).with_spinning(True) == SessionSettings()


def servings(
    served: Sequence[Served], given: int, cores: int, session: SessionSettings, feeding: Feeding
) -> list[Serving]:
    """Every configuration of every model, ready to be started.

    Args:
        served: models and packs; from `given` on those made for the occasion.
        given: how many the user named.
        cores: of the machine that is planned for.
        session: options but threads and spinning.
        feeding: what is fed.
    """
    here = usable_cores()
    feeds = {batch: feeding.feeds(served[:given], session, batch) for batch, _ in feeding.sent}
    found = []
    for index, one in enumerate(served):
        made = index >= given and one.plain is not None
        model = one.plain if made and one.plain is not None else index
        kinds = KINDS[:2] if one.plain == index else KINDS[2:]
        for way in candidates(model, cores=cores, here=here, kinds=kinds, batches=feeding.sent):
            if made and (way.workers == 1 or way.threads > 1):
                continue  # a single process shares with nobody
            found.append(_serving(way, one, feeds[way.batch], session, here))
    return found


def all_cores(model: ModelPath, session: SessionSettings, feeding: Feeding) -> Serving:
    """One thread per core of this machine, all on one session."""
    (one,) = packs.served([model])
    cores = usable_cores()
    way = Configuration(model=0, kind="threads", workers=cores)
    return _serving(way, one, feeding.feeds([one], session, 1), session, cores)


def _serving(way: Configuration, served: Served, feeds: Feeds, session: SessionSettings, here: int) -> Serving:
    chosen = dataclasses.replace(session, threads=way.threads)
    return Serving(
        configuration=way,
        name=served.name,
        path=served.path,
        feeds=feeds,
        settings=chosen if way.threads == 1 else chosen.with_spinning(way.spinning),
        at_once=way.at_once(here),
    )
