import json

import pytest

from onnxcomp.bench import environment as env


def test_capture_is_json_and_names_what_matters():
    out = env.capture().to_json()
    json.dumps(out, allow_nan=False)
    assert {"cpu", "cores", "isa", "governor", "cgroup", "kernel", "python", "ort", "packages"} <= set(out)
    assert out["ort"]["telemetry"] is False
    assert out["ort"]["distributions"]
    assert "numpy" in out["packages"]


def test_telemetry_is_told(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert env.capture().ort["telemetry"] is True


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", None), ("150000 100000", 1.5)])
def test_control_groups_version_two(tmp_path, quota, cores):
    own = tmp_path / "own"
    own.write_text("0::/job\n")
    folder = tmp_path / "root" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text(quota + "\n")
    (folder / "cpu.stat").write_text("usage_usec 5\nnr_periods 9\nnr_throttled 3\nthrottled_usec 7000\n")
    assert env.cgroup(tmp_path / "root", own) == env.Cgroup(cores, 3, 7_000_000)


@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("50000", 0.5)])
def test_control_groups_version_one(tmp_path, quota, cores):
    own = tmp_path / "own"
    own.write_text("4:memory:/elsewhere\n1:cpu,cpuacct:/job\n0::/\n")
    folder = tmp_path / "root" / "cpu"  # the group's own folder is hidden inside of a container
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text("100000")
    (folder / "cpu.stat").write_text("nr_periods 0\nnr_throttled 2\nthrottled_time 11\n")
    assert env.cgroup(tmp_path / "root", own) == env.Cgroup(cores, 2, 11)


def test_no_control_group(tmp_path):
    assert env.cgroup(tmp_path, tmp_path / "none") == env.Cgroup()
