"""Markdown for a pull request: tables that GitHub reads, no pictures, and names that stay names."""

from __future__ import annotations

import sys

import bench_rows
import pytest
import results

from onnxcomp.errors import DataError
from onnxcomp.report.markdown import build


def tables(text):
    """Blocks of successive lines of a table, cells counted by unescaped bars."""
    blocks, block = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line.replace(r"\|", "").count("|") - 1)
        elif block:
            blocks.append(block)
            block = []
    return blocks


def test_a_comparison_as_tables(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # there is nothing to draw
    text = build([results.bench()], title="Pull request 7")
    assert text.startswith("# Pull request 7\n\n## Latency\n")
    assert "small.onnx against base.onnx: 2.01x [1.90, 2.12], faster. Trust in these timings: fair." in text
    assert "| small.onnx | base.onnx | 2.01x [1.90, 2.12] | faster | 1.004 ok | 17 |" in text
    assert "| base.onnx | cpu | 1 | 2 | 1.23 [1.11, 1.36] | 2.47 [1.23, ∞] |" in text
    assert "<details><summary>Environment</summary>\n\n|  |  |\n| --- | --- |\n| CPU | Some CPU 9000" in text
    assert "<svg" not in text


@pytest.mark.parametrize(
    "document",
    [
        results.demo(), results.bench(), results.fidelity(), results.score(), results.record(),
        bench_rows.document(bench_rows.server(), baseline=bench_rows.gated()),
        bench_rows.document(*bench_rows.workers()), bench_rows.document(*bench_rows.sweep()),
        bench_rows.document(*bench_rows.throughput()), bench_rows.document(bench_rows.cold()),
    ],
)  # fmt: skip
def test_every_row_has_the_cells_of_its_head(document):
    found = tables(build([document]))
    assert found
    for block in found:
        assert len(block) >= 3
        assert len(set(block)) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b.onnx", r"a\|b.onnx"),
        ("<script>", "&lt;script>"),
        ("@everyone", "&#64;everyone"),
        ("[x](http://e.vil)", r"[x]\(http:&#47;/e.vil)"),
        ("`code`\n# big", r"\`code\` \# big"),
        ("_a_*b*", r"\_a\_\*b\*"),
    ],
)
def test_hostile_names_are_text(name, shown):
    record = {**results.record(), "warnings": [name]}
    record["output"] = {**record["output"], "path": name}
    text = build([record, {**results.score(), "data": name}], title=name)
    assert text.startswith(f"# {shown}\n")
    assert f"- {shown}\n" in text
    assert name not in text
    assert len({len(set(block)) for block in tables(text)}) == 1


def test_what_is_no_result_is_refused():
    with pytest.raises(DataError, match="no page section"):
        build([{"schema": "onnxcomp/inspect/1"}])
