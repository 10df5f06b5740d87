"""Simulated servers whose times are known, on a clock of their own."""

import numpy as np

from onnxcomp.bench import queueing, traffic


def served(due_ns, services_ns, *, rate=1000.0, workers=1):
    """The traffic of a perfect server."""
    ends = due_ns + queueing.sojourns(due_ns, services_ns, workers).astype(np.int64)
    starts = ends - services_ns
    return traffic.Traffic(
        rate=rate,
        workers=workers,
        due_ns=due_ns,
        taken_ns=starts,
        started_ns=starts,
        ended_ns=ends,
        cpu_ns=services_ns,
        failed=np.zeros(len(due_ns), bool),
    )


class Line:
    """Runs of a server with random service times, and a clock that only they advance."""

    def __init__(self, seed, *, mean_ms=1.0, shape=1.0, workers=1, starting=1.0):
        self.seed, self.generator = seed, np.random.default_rng(seed + 10**6)
        self.mean_ns, self.shape, self.workers, self.starting = mean_ms * 1e6, shape, workers, starting
        self.now = 0.0
        self.rates = []

    def clock(self):
        return self.now

    def services_ms(self, count):
        """Gamma: `shape` 1 is exponential, more is steadier."""
        return self.generator.gamma(self.shape, self.mean_ns / self.shape / 1e6, count)

    def __call__(self, rate, seconds):
        self.rates.append(rate)
        self.now += seconds + self.starting
        due = traffic.poisson(rate, seconds, self.seed)
        return served(due, (self.services_ms(len(due)) * 1e6).astype(np.int64), rate=rate, workers=self.workers)
