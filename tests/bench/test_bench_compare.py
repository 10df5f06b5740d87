import dataclasses
import itertools
import json

import numpy as np
import pytest

from onnxcomp.bench import compare as comparing
from onnxcomp.bench.clock import Clock, Tick
from onnxcomp.bench.statistics import LOOKS


class Model:
    """A pretend model: each opening draws the bias of a session, each run some noise."""

    def __init__(self, clock, cost, bias=0.02, seed=0):
        self.clock, self.cost, self.bias, self.opened = clock, cost, bias, 0
        self.generator = np.random.default_rng(seed)
        self.log = []

    def __call__(self):
        self.opened += 1
        cost = self.cost * np.exp(self.generator.normal(0, self.bias))

        def run(feed):
            self.log.append(feed)
            self.clock.last = int(cost * np.exp(self.generator.normal(0, 0.02)))

        return [lambda f=f: run(f) for f in range(4)]


class PretendClock(Clock):
    def __init__(self, per_process=False):
        super().__init__(per_process)
        object.__setattr__(self, "last", 0)

    __setattr__ = object.__setattr__

    def time(self, call):
        call()
        return Tick(self.last * 3, self.last)

    def overhead(self):
        return Tick(0, 0)


PLAN = comparing.Plan(runs=10, warm_up=2)


def run(costs, *, seconds=60.0, per_process=False, seed=1, **options):
    clock = PretendClock(per_process)
    models = [Model(clock, cost, seed=seed * 100 + i) for i, cost in enumerate(costs)]
    names = [f"m{i}" for i in range(len(costs))]
    found = comparing.compare(names, models, clock=clock, plan=PLAN, seconds=seconds, seed=seed, **options)
    return found, models


@pytest.mark.parametrize(("cost", "verdict"), [(900_000, "faster"), (1_100_000, "slower")])
@pytest.mark.parametrize("per_process", [False, True])
def test_a_difference_is_found(cost, verdict, per_process):
    found, _ = run([1_000_000, cost], per_process=per_process)
    decision = found.decisions[0]
    assert decision.verdict == verdict
    assert decision.speedup.low <= 1_000_000 / cost <= decision.speedup.high
    assert found.clock == ("wall" if per_process else "thread")


def test_equals_have_no_winner():
    verdicts = [run([1_000_000, 1_000_000], seed=seed)[0].decisions[0].verdict for seed in range(1, 41)]
    assert verdicts.count("faster") + verdicts.count("slower") <= 2


def test_every_round_opens_every_arm_and_a_clone():
    found, (reference, first, second) = run([1_000_000, 700_000, 1_000_000])
    assert reference.opened == 2 * len(found.rounds)
    assert first.opened == second.opened == len(found.rounds)
    assert len(found.decisions) == 2
    for one in found.rounds:
        assert sorted(one.created) == [0, 1, 2, 3]
        assert len(one.wall_ns) == len(one.cpu_ns) == 4
        assert {len(arm) for arm in (*one.wall_ns, *one.cpu_ns)} == {PLAN.runs}


def test_the_first_look_is_reached_without_any_time():
    found, _ = run([1_000_000, 1_000_000], seconds=1e-9)
    assert len(found.rounds) == LOOKS[0]
    assert found.looks == (LOOKS[0],)


def test_judged_only_at_looks_while_there_is_time():
    found, _ = run([1_000_000, 1_012_000])
    assert set(found.looks) <= set(LOOKS)
    assert found.looks == LOOKS[: len(found.looks)]


def test_orders_vary_and_the_seed_repeats_them():
    orders = []

    class Watch:
        def __init__(self, index):
            self.index = index

        def __call__(self):
            orders.append(("open", self.index))
            return [lambda: orders.append(("run", self.index))]

    def record(seed):
        orders.clear()
        comparing.one_round([Watch(i) for i in range(3)], Clock(), PLAN, np.random.default_rng(seed))
        opened = tuple(i for kind, i in orders if kind == "open")
        runs = [i for kind, i in orders if kind == "run"]
        return opened, [tuple(runs[i : i + 3]) for i in range(0, len(runs), 3)]

    rounds = [record(seed) for seed in range(60)]
    assert record(5) == rounds[5]
    every = set(itertools.permutations(range(3)))
    assert {opened for opened, _ in rounds} == every
    assert {tuples[0] for _, tuples in rounds} == every  # the warm-up's first tuple
    assert {tuples[-1] for _, tuples in rounds} == every
    for _, tuples in rounds:
        assert len(tuples) == PLAN.warm_up + PLAN.runs
        assert all(sorted(t) == [0, 1, 2] for t in tuples)


def test_arms_of_a_tuple_get_the_same_feed():
    _, (reference, candidate) = run([1_000_000, 1_000_000], seconds=1e-9)
    assert sorted(reference.log) == sorted(candidate.log * 2)
    assert set(candidate.log) == {0, 1, 2, 3}


def test_a_biased_clone_forbids_a_verdict():
    clock = PretendClock()

    class Biased(Model):
        """The second opening of each round (the clone, or the reference) is not like the first."""

        def __call__(self):
            self.cost = 1_000_000
            return super().__call__()

    reference, candidate = Biased(clock, 1_000_000, bias=0.001), Model(clock, 500_000, bias=0.001)
    plain = comparing.one_round

    def unfair(arms, *rest):
        one = plain(arms, *rest)
        slow = tuple(tuple(int(v * 1.05) for v in one.cpu_ns[i]) if i == 2 else one.cpu_ns[i] for i in range(3))
        return comparing.Round(one.created, one.wall_ns, slow)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "one_round", unfair)
        found = comparing.compare(["a", "b"], [reference, candidate], clock=clock, plan=PLAN, seconds=60, seed=1)
    assert found.decisions[0].verdict == "undecided"
    assert not found.decisions[0].aa_ok
    assert len(found.rounds) == LOOKS[-1]  # a failing control is looked at again, until the end


def one_round(*cpu, wall=None):
    return comparing.Round(tuple(range(len(cpu))), wall or cpu, cpu)


def test_log_ratios_by_clock():
    slow, fast = (110, 60, 90), (50, 50, 50)
    one = one_round(slow, fast, slow, wall=((100, 100, 400), (200, 200, 200), (100, 100, 400)))
    assert np.exp(comparing.log_ratios([one], 1, "wall")) == pytest.approx([0.5])
    # averages of two of the logs of (0.5, 0.5, 2): three are log 0.5, two 0, one log 2
    assert np.exp(comparing.log_ratios([one], 1, "wall_median")) == pytest.approx([0.5**0.5])
    # of the logs of 2.2, 1.2 and 1.8 those of (2.2 x 1.2) ** 0.5 and 1.8 stand in the middle
    assert np.exp(comparing.log_ratios([one], 1, "thread")) == pytest.approx([(2.64**0.5 * 1.8) ** 0.5])
    assert np.exp(comparing.log_ratios([one], 1, "thread", Tick(0, 40))) == pytest.approx([(14**0.5 * 5) ** 0.5])


@pytest.mark.parametrize("clock", ["thread", "wall", "wall_median"])
def test_the_reference_is_the_mean_of_itself_and_its_clone(clock):
    one = one_round((104,) * 9, (100,) * 9, (50,) * 9, (100 / 1.04,) * 9)
    assert np.exp(comparing.log_ratios([one], 1, clock)) == pytest.approx([1])
    assert np.exp(comparing.log_ratios([one], 2, clock)) == pytest.approx([2])
    assert np.exp(comparing.log_ratios([one], 3, clock)) == pytest.approx([1.04**2])
    assert np.exp(comparing.log_ratios([one], -1, clock)) == pytest.approx([1.04**2])


def test_outliers_of_the_deciding_clock_are_counted_round_by_round():
    clock = PretendClock()
    found, _ = run([1_000_000, 1_000_000])
    steady = tuple(100 + i % 3 for i in range(40))
    late = tuple(ns * (50 if i in (3, 9) else 1) for i, ns in enumerate(steady))
    rounds = (one_round(steady, late, steady, wall=(late, steady, steady)),) * 2
    for name, counts in (("thread", (0, 4)), ("wall", (4, 0))):
        (entry,) = dataclasses.replace(found, rounds=rounds, clock=name, overhead=clock.overhead()).to_json()
        assert entry["outliers"] == {"reference": counts[0], "candidate": counts[1]}


def test_a_few_long_runs_do_not_move_a_round():
    steady = tuple(100 + i % 3 for i in range(40))
    late = tuple(ns * (50 if i % 7 == 3 else 1) for i, ns in enumerate(steady))
    assert np.exp(comparing.log_ratios([one_round(steady, late, steady)], 1, "thread")) == pytest.approx([1], abs=0.02)


@pytest.mark.parametrize(
    ("run_seconds", "seconds", "runs", "noted"),
    [
        (0.001, 20.0, 80, False),
        (0.003, 20.0, 40, False),
        (0.012, 10.0, (10, 20), True),
        (0.00001, 20.0, 200, False),
        (0.1, 20.0, (3, 8), True),
        (10.0, 20.0, 3, True),
    ],
)
def test_plan_fits_the_budget(run_seconds, seconds, runs, noted):
    plan = comparing.plan([run_seconds] * 3, [0.02] * 3, seconds)
    low, high = runs if isinstance(runs, tuple) else (runs, runs)
    assert low <= plan.runs <= high
    assert bool(plan.notes) == noted
    if run_seconds <= 0.1:
        assert LOOKS[0] * (0.06 + (plan.runs + plan.warm_up) * 3 * run_seconds) <= seconds
    else:
        assert "more than the budget" in plan.notes[-1]


def test_json_has_the_contract_and_integers():
    found, _ = run([1_000_000, 800_000])
    (entry,) = found.to_json()
    assert entry["candidate"] == "m1"
    assert entry["reference"] == "m0"
    assert set(entry["speedup"]) == {"value", "low", "high"}
    assert set(entry["aa"]) >= {"ratio", "ok"}
    assert len(entry["round_ratios"]) == entry["rounds"] == len(found.rounds)
    assert entry["outliers"] == {"reference": 0, "candidate": 0}
    samples = found.samples_json()
    assert samples["arms"] == ["m0", "m1", "clone of the reference"]
    assert isinstance(samples["rounds"][0]["cpu_ns"][0][0], int)
    json.dumps([entry, samples], allow_nan=False)


@pytest.mark.parametrize("seed", range(3))
def test_every_shape_that_a_round_measures_is_warm(seed):
    clock = PretendClock()
    models = [Model(clock, 1_000_000), Model(clock, 1_000_000)]
    plan, shapes = comparing.Plan(runs=10, warm_up=1), [0, 7, 7, 2]
    comparing.one_round([*models, models[0]], clock, plan, np.random.default_rng(seed), shapes)
    measured = 2 * 2 * plan.runs // 2  # of the reference and its clone together
    warmed, counted = models[0].log[:-measured], models[0].log[-measured:]
    assert {shapes[feed] for feed in warmed} == {shapes[feed] for feed in counted} == {0, 7, 2}
    assert len(warmed) == 2 * 3


def test_a_short_round_warms_no_shape_that_it_does_not_measure():
    clock = PretendClock()
    model = Model(clock, 1_000_000)
    comparing.one_round([model, model], clock, comparing.Plan(2, 1), np.random.default_rng(1), [0, 1, 2, 3])
    assert len(set(model.log)) == 2


def test_the_plan_has_time_to_warm_every_shape():
    for shapes, runs, warm in ((1, 35, 5), (30, 20, 20), (12, 28, 12)):
        plan = comparing.plan([0.01] * 3, [0.0] * 3, 24.0, shapes=shapes)
        assert (plan.runs, plan.warm_up) == (runs, warm)
        assert LOOKS[2] * (plan.runs + plan.warm_up) * 0.03 <= 24.0 + 1e-9
