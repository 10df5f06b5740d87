"""Benchmarks on the page: the pictures of each scenario, the baseline, and a page that stays small."""

from __future__ import annotations

import re

import bench_rows
import pytest

from onnxcomp.report import plots, tables
from onnxcomp.report.benchmark import labels
from onnxcomp.report.page import build


def pictures(page):
    """What each picture is said to show."""
    return [label.split(":")[0] for label in re.findall(r'<svg role="img" aria-label="([^"]*)"', page)]


def drawn(page):
    """All text in pictures."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", page))


@pytest.mark.parametrize(
    ("rows", "shown", "words"),
    [
        ([bench_rows.latency()], ["histogram of wall latencies", "cumulative distribution of wall latencies"],
         ["wall time of a run in ms", "% of runs at or below", "p99"]),
        ([bench_rows.cold()], ["ms from process start to first output, medians"],
         ["start and imports", "load", "first run", "303 ms"]),
        ([bench_rows.server()],
         ["p99 over the rate of requests", "histogram of wall latencies", "cumulative distribution of wall latencies"],
         ["requests a second", "p99 in ms", "objective: p99 within 7 ms", "ms from when a request was due"]),
        (bench_rows.throughput(), ["p99 of a run in ms over samples a second"], ["1/1/1", "4/1/1", "16/1/1"]),
        (bench_rows.workers(), ["memory (PSS) of all together in MB"],
         ["net.onnx, 1 process", "net.onnx, 4 on a pack", "anonymous", "mapped files", "50 MB"]),
        (bench_rows.sweep(), ["CPU ms a sample over p50 of a run in ms"], ["net.onnx (front)", "1/2s", "8/1"]),
    ],
)  # fmt: skip
def test_each_scenario_has_its_pictures(rows, shown, words):
    page = build([bench_rows.document(*rows)])
    assert pictures(page) == shown
    text = drawn(page)
    for word in words:
        assert word in text


def test_axes_of_a_wide_range_have_plain_numbers():
    rows = bench_rows.throughput()
    rows[0]["latency_ms"]["p99"] = bench_rows.percentile(0.05)
    text = drawn(build([bench_rows.document(*rows)]))
    assert "mathdefault" not in text
    assert re.search(r"\b0\.1\b", text)


def test_words_beside_points_cover_nothing():
    rows = [{**bench_rows.throughput()[0], "batch": n, "throughput": 100.0 + n} for n in range(1, 30)]
    page = build([bench_rows.document(*rows)])
    beside = re.findall(r"<text[^>]*>(\d+/1/1)</text>", page)
    assert 2 <= len(beside) < 29  # the points stand too close for all


def test_a_sweep_says_how_many_are_on_the_front():
    assert "2 of 3 settings are on the front" in build([bench_rows.document(*bench_rows.sweep())])


def test_the_baseline_stands_first_with_its_verdict():
    page = build([bench_rows.document(bench_rows.latency(), baseline=bench_rows.gated())])
    assert pictures(page)[0] == "speedup against the baseline"
    assert "Slower than the baseline, beyond the noise (tolerance 2.0 %)." in page
    assert '<td class="regression short">regression</td>' in page
    for shown in ("0.913x [0.902, 0.924]", "stored: indicative", "20, 19", "only in the baseline: other.onnx"):
        assert shown in page
    undecided = build([bench_rows.document(bench_rows.latency(), baseline=bench_rows.gated("undecided"))])
    assert "why it is so" in undecided


def test_a_plan_has_its_table_its_rates_and_its_start():
    page = build([bench_rows.plan()])
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Plan: net.onnx", "What to start"]
    assert pictures(page) == ["requests a second of one machine"]
    assert '<td class="met short">met</td>' in page
    for shown in (
        "310 [250, 9,000,000]", "7.50 [6.75, 9.00]", "out of question: 9 processes: only two cores", "a note",
        "net needs 2 workers where other needs 4. Trust in these timings: fair.",
        "1 machine, each with 2 processes of /m/net.onnx (met)",
    ):  # fmt: skip
        assert shown in page
    ticks = [float(text.replace(",", "")) for text in re.findall(r"<text[^>]*>([\d,.]+)</text>", page)]
    assert max(ticks) <= 4 * 310


def test_labels_say_what_rows_do_not_share():
    rows = [bench_rows.row("latency", batch=b, threads=t) for b, t in ((1, 1), (8, 1))]
    assert labels(rows) == ["net.onnx, batch 1", "net.onnx, batch 8"]
    assert labels(bench_rows.workers()[1:3]) == ["net.onnx, 4 processes", "net.onnx, 4 threads"]
    assert labels(rows[:1]) == ["net.onnx"]


def test_ten_thousand_samples_stay_below_300_kb():
    rows = [bench_rows.latency(10_000, f"/m/net{i}.onnx") for i in range(4)]
    page = build([bench_rows.document(*rows)])
    assert len(page.encode()) <= 300_000
    assert "net3.onnx" in drawn(page)


def test_results_of_one_machine_name_it_once():
    page = build([bench_rows.document(bench_rows.latency()), bench_rows.document(bench_rows.cold())])
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Latency", "Environment", "Cold start"]


def test_the_tail_is_cut_and_counted():
    row = bench_rows.latency(100)
    row["samples"]["wall_ns"] = [1_000_000] * 97 + [50_000_000] * 3
    page = build([bench_rows.document(row)])
    assert "(3 of 100 beyond)" in drawn(page)
    assert plots.far([("net", row["samples"]["wall_ns"])]) == pytest.approx(3.0)


def test_the_terminal_says_what_the_gate_says(capsys):
    tables.benchmark(bench_rows.document(bench_rows.latency(), baseline=bench_rows.gated("undecided")))
    out = capsys.readouterr().out
    for shown in ("baseline old.json", "undecided", "0.913x [0.902, 0.924]", "why it is so", "only in the baseline"):
        assert shown in out
