"""Ranges of activations against brute force, known distributions and real activations."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.activations import Histogram, observe
from onnxcomp.data import Batches
from onnxcomp.model import load, signature
from onnxcomp.passes.quantize import ranges

GENERATOR = np.random.default_rng(0)
NORMAL = GENERATOR.standard_normal(200_000).astype(np.float32)
OUTLIERS = np.concatenate([NORMAL, np.float32([80, -60])])
RELU = np.maximum(NORMAL, 0)
SAMPLES = {
    "normal": NORMAL,
    "outliers": OUTLIERS,
    "relu": RELU,
    "relu with an outlier": np.append(RELU, np.float32(90)),
    "shifted": NORMAL + 5,
    "negative": -np.abs(NORMAL),
    "uniform": GENERATOR.uniform(-1, 3, 50_000).astype(np.float32),
    "few": NORMAL[:40],
    "denormal": (NORMAL * 1e-40).astype(np.float32),
    "large": NORMAL * np.float32(1e30),
    "constant": np.full(1000, 3.3, np.float32),
    "mask": np.repeat(np.float32([0, -10000]), 500),
}


def histogram(values: np.ndarray) -> Histogram:
    made = Histogram()
    made.update(values)
    return made


def error(values: np.ndarray, low: float, high: float) -> float:
    """Mean square error of QuantizeLinear and DequantizeLinear to uint8, written out."""
    values = values.astype(np.float64)
    scale = (high - low) / 255
    zero_point = np.round(-low / scale)
    stored = np.clip(np.round(values / scale) + zero_point, 0, 255)
    return float(np.mean(((stored - zero_point) * scale - values) ** 2))


@pytest.mark.parametrize("method", ranges.METHODS)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_range_lies_inside_the_data_and_around_zero(method, name):
    values = SAMPLES[name]
    low, high = ranges.METHODS[method](histogram(values))
    assert min(float(values.min()), 0) <= low <= 0 <= high <= max(float(values.max()), 0)
    assert low < high
    if values.min() >= 0:
        assert low == 0
    if values.max() <= 0:
        assert high == 0


@pytest.mark.parametrize("method", ranges.METHODS)
def test_zeros_and_nothing(method):
    assert ranges.METHODS[method](histogram(np.zeros(10))) == (0, 0)
    low, high = ranges.METHODS[method](Histogram())
    assert (low, high) in [(0, 0), (np.inf, -np.inf)] or low <= high


@pytest.mark.parametrize("name", SAMPLES)
def test_minmax_is_exact(name):
    values = SAMPLES[name]
    assert ranges.minmax(histogram(values)) == (min(float(values.min()), 0), max(float(values.max()), 0))


@pytest.mark.parametrize("share", [0.99, 0.999, 0.99999])
@pytest.mark.parametrize("name", ["normal", "outliers", "relu", "uniform"])
def test_percentile_is_numpys_up_to_a_bin(share, name):
    values = SAMPLES[name]
    made = histogram(values)
    low, high = ranges.percentile(made, share)
    # numpy interpolates between neighbours, which far out lie apart: 'lower' and 'higher' bound it
    ends = [np.quantile(values, q, method=m) for q in (1 - share, share) for m in ("lower", "higher")]
    assert min(ends[0], 0) - made.width <= low <= max(min(ends[1], 0), -0.0) + made.width
    assert ends[2] - made.width <= high <= ends[3] + made.width


def test_percentile_leaves_out_single_outliers():
    low, high = ranges.percentile(histogram(OUTLIERS))
    assert -6 < low < -4
    assert 4 < high < 6


def test_percentile_of_a_constant_holds_it():
    assert ranges.percentile(histogram(SAMPLES["constant"])) == (0, float(np.float32(3.3)))


@pytest.mark.parametrize("name", ["normal", "outliers", "relu", "relu with an outlier", "shifted", "negative", "few"])
def test_mse_is_as_good_as_brute_force(name):
    """Over a grid of both ends, on the values themselves and not on the histogram."""
    values = SAMPLES[name][-20_000:]
    found = error(values, *ranges.mse(histogram(values)))
    low, high = min(float(values.min()), 0), max(float(values.max()), 0)
    shares = [*np.linspace(0.03, 0.3, 10), *np.linspace(0.4, 1, 13)]
    best = min(error(values, low * a, high * b) for a in (shares if low else [0]) for b in (shares if high else [0]))
    assert found <= best * 1.02


def test_mse_of_a_normal_distribution_is_the_known_optimum():
    """Uniform quantization of N(0, 1) to 256 levels is best at about 3.92 (Max 1960; Banner et al. 2019: 3.89)."""
    low, high = ranges.mse(histogram(NORMAL))
    assert 3.7 < -low < 4.2
    assert 3.7 < high < 4.2


def divergence(made: Histogram, low: float, high: float) -> float:
    """What `entropy` makes small, written out bin by bin."""
    counts = made.counts.reshape(-1, 4).sum(1).astype(float)
    middle = len(counts) // 2
    counts[middle] = min(counts[middle], max(counts[middle - 1], counts[middle + 1]))
    edges = (np.arange(len(counts)) - middle) * made.width * 4
    held = np.flatnonzero(counts)
    inside = [i for i in range(held[0], held[-1] + 1) if edges[i] + made.width * 4 >= low and edges[i] <= high]
    if not inside:
        return np.inf
    below, above = counts[: inside[0]].sum(), counts[inside[-1] + 1 :].sum()
    if max(below, above) > 1e-4 * counts.sum():
        return np.inf
    scale = (high - low) / 255
    levels = {i: np.clip(np.rint((edges[i] + made.width * 2) / scale) + np.rint(-low / scale), 0, 255) for i in inside}
    full = {level: [counts[i] for i in inside if levels[i] == level and counts[i]] for level in set(levels.values())}
    total = 0.0
    for i in inside:
        count = counts[i] + (below if i == inside[0] else 0) + (above if i == inside[-1] else 0)
        if count:
            spread = np.mean(full[levels[i]]) if counts[i] else 0.5
            total += count * np.log(count / spread * (counts.sum() - below - above) / counts.sum())
    return total / counts.sum()


@pytest.mark.parametrize("name", ["normal", "shifted", "negative", "relu", "few"])
def test_entropy_is_as_good_as_brute_force(name):
    """Over a grid of both ends, with sums over bins instead of differences of sums."""
    made = histogram(SAMPLES[name][:20_000])
    low, high = ranges.minmax(made)
    found = divergence(made, *ranges.entropy(made))
    shares = [0.05, 0.4, 0.8, 0.9, 0.95, 1.0]
    tried = [divergence(made, low * a, high * b) for a in (shares if low else [0]) for b in (shares if high else [0])]
    assert found <= min(tried) + 1e-9


@pytest.mark.parametrize(("method", "limit"), [("entropy", 12), ("percentile", 6)])
def test_outliers_do_not_rule(method, limit):
    """Two values in 200,000 lie at 80 and -60: a range that holds them has a step of 0.55.

    The square error does hold them (the two weigh as much as all rounding): see the brute force above.
    """
    low, high = ranges.METHODS[method](histogram(OUTLIERS))
    assert max(-low, high) < limit
    assert min(-low, high) > 3


def test_entropy_keeps_a_range_that_is_used_evenly():
    low, high = ranges.entropy(histogram(SAMPLES["uniform"]))
    assert low < -0.97
    assert high > 2.97


@pytest.mark.parametrize("name", ["relu", "relu with an outlier"])
def test_entropy_is_not_drawn_to_the_zeros_behind_a_relu(name):
    """Half of all values are exactly zero."""
    low, high = ranges.entropy(histogram(SAMPLES[name]))
    assert low == 0
    assert 3 < high < 12


def test_entropy_keeps_both_values_of_a_mask():
    assert ranges.entropy(histogram(SAMPLES["mask"]))[0] == -10000


def test_entropy_keeps_spikes():
    """Some constants among many values, as padding makes them."""
    values = np.concatenate([NORMAL, np.repeat(np.float32([0.31, 1.7, -2.2]), 30_000)])
    low, high = ranges.entropy(histogram(values))
    assert -low > 3
    assert high > 3


REAL = ["mlperftiny_resnet8_cifar10", "snips_transformer", "magika_standard_v3_3"]


@pytest.mark.parametrize("name", REAL)
def test_real_activations(shared, tmp_path, name):
    """Signal to noise of each tensor, compared with that of the exact ends."""
    from real_data import samples

    arrays, real = samples(name, shared)
    assert real
    arrays.pop("labels", None)
    model = load(shared / f"models/{name}.onnx")
    data = Batches(arrays, signature(model).inputs)
    operators = {"Conv", "Gemm", "MatMul", "Relu", "Softmax", "LayerNormalization", "Mul"}
    wanted = {v.name: [Histogram()] for node in model.graph if node.op_type in operators for v in node.outputs}
    observe(model, data.take(min(64, data.samples)), wanted, workdir=tmp_path)
    held = [h for (h,) in wanted.values() if h.low < h.high]
    assert len(held) > 15
    lost = {method: [_db(h, *choose(h)) for h in held] for method, choose in ranges.METHODS.items()}
    gain = {method: np.array(values) - lost["minmax"] for method, values in lost.items()}
    assert gain["mse"].min() >= -0.01
    assert np.median(gain["mse"]) > 0
    for method in ("percentile", "entropy"):
        assert np.median(gain[method]) > -1.5
        assert gain[method].min() > -13
        for h in held:
            low, high = ranges.METHODS[method](h)
            centers, counts = h.occupied()
            outside = counts[(centers + h.width < low) | (centers - h.width > high)].sum()
            assert outside <= 3e-4 * counts.sum()


def _db(h: Histogram, low: float, high: float) -> float:
    """Signal to noise ratio of a range."""
    centers, counts = h.occupied()
    values, weights = centers[counts > 0], counts[counts > 0]
    scale = (high - low) / 255
    zero_point = np.round(-low / scale)
    restored = (np.clip(np.round(values / scale) + zero_point, 0, 255) - zero_point) * scale
    return 10 * np.log10((weights * values**2).sum() / max((weights * (restored - values) ** 2).sum(), 1e-300))
