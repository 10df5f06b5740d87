"""The page: self-contained, without script, complete, and deaf to hostile names."""

from __future__ import annotations

import html
import re
import sys

import pytest
import results

from onnxcomp.errors import DataError, UnsupportedError
from onnxcomp.report.page import build

#: URIs in matplotlib's SVG that name things and are never fetched
NAMESPACES = ("http://www.w3.org/", "http://purl.org/dc/", "http://creativecommons.org/ns#")
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><b>",
    "{{ 7 * 191 }}",
    "--><iframe>",
    r"$\frac$",
    "_hidden",
    "模型",
    "a\nb\x1b[2J",
]


def text_of(page):
    """The text that a reader sees outside of the pictures."""
    body = re.sub(r"<svg.*?</svg>", " ", page[page.index("<body>") :], flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def elements(page):
    return {name.lower() for name in re.findall(r"<([a-zA-Z][\w:]*)", page)}


@pytest.fixture(scope="module")
def everything():
    """A page of every kind of result."""
    records = [results.record(verb) for verb in ("optimize", "quantize", "prune", "run", "share", "distill")]
    found = [results.demo(), results.bench(), results.fidelity(), results.score(), *records]
    return build(found, title="All of it")


def test_nothing_is_fetched_and_nothing_runs(everything):
    assert not elements(everything) & {"script", "iframe", "object", "embed", "link", "img", "base", "form", "image"}
    assert not re.search(r"\son\w+=", everything)
    assert not re.search(r"\ssrc\s*=", everything)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', everything))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", everything))
    assert "@import" not in everything
    uris = re.findall(r"https?:[^\"'<\s]*", everything)
    assert [uri for uri in uris if not uri.startswith(NAMESPACES)] == []
    assert "default-src 'none'" in everything


def test_the_demo_shows_every_figure_with_its_interval():
    text = text_of(build([results.demo()], title="Page"))
    for shown in (
        "Page",
        "Digits",
        "It is 1.37 times faster.",
        "1.25 MB",
        "350 kB",
        "3.57x",
        "99.11 % [98.69, 99.53]",
        "98.77 % [98.26, 99.28]",
        "0.34 % [0.13, 0.55]",
        "1.37x [1.29, 1.45]",
        "passed, not certain",
        "dynamic int8 larger than its input",
        "head, tail too small",
        "quantize-static: stem: kept symmetric",
    ):
        assert shown in text


def test_the_benchmark_shows_latency_trust_and_environment():
    text = text_of(build([results.bench()]))
    for shown in (
        "Trust in these timings: fair.",
        "the load was 3.1; stop other programs",
        "base.onnx cpu 1 2 1.23 [1.11, 1.36] 2.47 [1.23, ∞] 3.70 [1.23, ∞]",
        "not estimable (needs 368 runs) 12,346 98.7 MB",
        "small.onnx base.onnx 2.01x [1.90, 2.12] faster 1.004 ok 17",
        "small.onnx: seventeen rounds agreed",
        "Some CPU 9000, 6 cores, avx2 vnni",
        "memory 16 GB",
        "6.1.0",
        "0.2, 0.5, 0.8",
        "1.99.0 (onnxruntime), telemetry off",
        "onnx 1.98",
        "3.11.7",
    ):
        assert shown in text


def test_unknown_memory_is_not_zero():
    found = results.bench()
    found["results"][0]["memory"]["pss_bytes"] = None
    text = text_of(build([found]))
    assert "12,346 -" in text
    assert "0 B" not in text


def test_records_scores_and_fidelity():
    text = text_of(build([{**results.record(), "fidelity": results.fidelity()}, results.score()]))
    for shown in (
        "small.onnx 3.57 times smaller than base.onnx.",
        "runs/base.onnx 1.25 MB " + "aa" * 32,
        "runs/small.onnx 350 kB " + "bb" * 32,
        "quantize-static 3 of 4 weights in int8, 90.0 % of their bytes 1.3 s",
        "the data was scarce",
        "On 321 samples of test.npz. Same class: 97.53 % [96.42, 98.64].",
        "noisy 31.4 dB 0.9987 0.9876 0.125 0.125",
        "same equal",
        "broken none 0.9987 0.9876 NaN NaN",
        "On 599 samples of test.npz.",
        "candidate 94.22 % [92.89, 95.55]",
        "reference 95.33 % [93.89, 96.77]",
        "drop, paired 1.11 % [0.56, 1.66]",
    ):
        assert shown in text


def test_pictures_are_inline_and_named():
    page = build([results.demo()])
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert [label.split(":")[0] for label in labels] == [
        "accuracy in %",
        "drop in points",
        "file sizes",
        "speedup",
        "histogram of wall latencies",
        "cumulative distribution of wall latencies",
    ]
    assert "float32 1.25 MB, static int8 350 kB" in labels[2]
    assert len(re.findall(r"<figure>", page)) == 6


def test_a_benchmark_alone_has_its_own_picture_of_speedups():
    assert 'aria-label="speedup: small.onnx 2.01"' in build([results.bench()])
    alone = {**results.bench(), "comparison": []}
    assert "speedup" not in build([alone]).lower()


def test_a_demo_whose_candidates_were_all_refused():
    found = results.demo()
    found["models"] = found["models"][:1]
    found["bench"]["comparison"] = []
    page = build([found])
    assert page.count("<figure>") == 4
    assert "larger than its input" in page


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name):
    demo = results.demo(name)
    demo["title"] = demo["conclusion"] = name
    demo["refused"][0] = {"name": name, "reason": name}
    demo["models"][1]["passes"][0]["effect"]["skipped"][0] = {"node": name, "reason": name}
    demo["bench"]["environment"]["cpu"] = name
    for result in demo["bench"]["results"]:
        result["model"] = name
    record = results.record()
    record["output"]["path"] = record["warnings"][0] = name
    found = [demo, record, {**results.fidelity(), "outputs": {name: results.fidelity()["outputs"]["noisy"]}}]
    page = build([*found, {**results.score(), "metric": name, "data": name}], title=name)
    clean = build([results.demo(), results.record(), results.fidelity(), results.score()])
    assert elements(page) == elements(clean)
    assert not re.search(r"<[^>]*\sonerror", page)
    assert "1337" not in page
    assert text_of(page).count(" ".join(name.split())) >= 12


def test_hostile_file_names_do_not_reach_the_pictures_as_markup():
    found = results.bench()
    for part in (*found["results"], *found["comparison"]):
        part["model"] = part["candidate"] = '<image href="x">&.onnx'
    page = build([found])
    assert "<image" not in page
    assert "&lt;image href=" in re.sub(r".*?(<svg.*</svg>).*", r"\1", page, flags=re.DOTALL)


def test_names_stand_in_the_pictures_as_they_are():
    found = results.bench()
    for result, name in zip(found["results"], ("_a$x$.onnx", "模型.onnx"), strict=True):
        result["model"] = name
    page = build([{**found, "comparison": []}])
    picture = page[page.index("<svg") : page.rindex("</svg>")]
    assert "_a$x$.onnx" in picture
    assert "模型.onnx" in picture


def test_several_results_stand_in_their_order():
    page = build([results.score(), results.record(), results.fidelity()])
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["Metric: accuracy", "small.onnx", "Fidelity"]


def test_same_results_same_page(everything):
    assert build([results.demo()]) == build([results.demo()])
    assert "All of it" in everything


@pytest.mark.parametrize(
    "schema",
    ["onnxcomp/inspect/1", "onnxcomp/error/1", "other/demo/1", "demo", "onnxcomp/demo", "", None],
)
def test_results_without_a_section_are_refused(schema):
    with pytest.raises(DataError, match="no page section") as caught:
        build([results.score(), {**results.score(), "schema": schema}])
    assert "demo, bench, compare, evaluate" in caught.value.hint


def test_a_file_without_schema_is_called_so():
    with pytest.raises(DataError, match="a file without schema"):
        build([{}])


@pytest.mark.parametrize(
    "damage",
    [
        {"reference": "high"},
        {"value": "0.9"},
        {"reference": {"value": 1, "low": 1}},
    ],
)
def test_damaged_results_are_refused(damage):
    found = {**results.score(), **damage}
    with pytest.raises(DataError, match="damaged") as caught:
        build([found])
    assert caught.value.where == "onnxcomp/evaluate/1"


def test_an_impossible_ratio_is_damage():
    with pytest.raises(DataError, match="damaged"):
        build([{**results.record(), "size_ratio": 0}])


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_without_its_libraries_it_says_what_to_install(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UnsupportedError, match=library) as caught:
        build([results.demo()])
    assert "onnxcomp[report]" in caught.value.hint
