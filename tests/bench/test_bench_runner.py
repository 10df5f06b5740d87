import bench_models
import numpy as np
import pytest

from onnxcomp.bench import runner
from onnxcomp.runtime import PROVIDERS, open_session


@pytest.fixture
def session(tmp_path):
    return open_session(bench_models.linear(tmp_path / "m.onnx", layers=2))


def test_binding_gives_the_same_outputs(session):
    feeds = [{"x": np.random.default_rng(i).standard_normal((3, 4)).astype(np.float32)} for i in range(3)]
    plain = runner.runs(session, feeds)
    bound = runner.runs(session, feeds, bind=True)
    assert len(plain) == len(bound) == 3
    for feed, one, other in zip(feeds, plain, bound, strict=True):
        expected = list(session.run(feed).values())
        for _ in range(2):  # a binding can be run again
            np.testing.assert_array_equal(runner.outputs(one()), expected)
            np.testing.assert_array_equal(runner.outputs(other()), expected)


def test_the_cpu_is_not_bound_by_default(session):
    feed = {"x": np.ones((1, 4), np.float32)}
    assert isinstance(runner.runs(session, [feed])[0](), list)
    assert not isinstance(runner.runs(session, [feed], bind=True)[0](), list)


def test_every_provider_has_a_device():
    assert set(runner.DEVICES) == set(PROVIDERS)
