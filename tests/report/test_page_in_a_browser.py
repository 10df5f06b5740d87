"""The page in a real browser, as wide as a telephone and as a desk: nothing spills, letters can be read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import bench_rows
import pytest
import results

from onnxcomp.report.page import build

#: measured by a script that only the test's copy of the page has, after the policy against scripts is taken out
_MEASURE = """<script>
addEventListener("load", () => {
  const texts = [...document.querySelectorAll("svg text")];
  const out = {width: innerWidth, spill: document.documentElement.scrollWidth - innerWidth, pictures: 0, outside: []};
  out.pictures = [...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().height > 60).length;
  out.smallest = Math.min(...texts.map(t => t.getBoundingClientRect().height));
  for (const t of texts) {
    const inner = t.getBoundingClientRect(), frame = t.ownerSVGElement.getBoundingClientRect();
    if (inner.left < frame.left - 2 || inner.right > frame.right + 2) out.outside.push(t.textContent);
  }
  parent.document.body.dataset.found = JSON.stringify(out);
});
</script>"""


@pytest.fixture(scope="module")
def browser():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    pytest.skip("no Chromium on this machine")


@pytest.fixture(scope="module")
def page():
    compared = [{**results.bench()["comparison"][0], "delta": 0.01}]
    rows = [bench_rows.latency(400, f"/m/{name}.onnx") for name in ("a-model-with-quite-a-long-name-int8", "b")]
    documents = [
        bench_rows.document(*rows, comparison=tuple(compared), baseline=bench_rows.gated()),
        *(bench_rows.document(*found) for found in (
            [bench_rows.cold()], [bench_rows.server()], bench_rows.throughput(), bench_rows.workers(),
            bench_rows.sweep())),
        results.demo(),
    ]  # fmt: skip
    text = build(documents)
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)[0]
    return text.replace(policy, _MEASURE)


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_spills_and_letters_can_be_read(browser, page, tmp_path, width):
    # in a frame: a window of a browser is never as narrow as a telephone
    frame = f'<iframe style="width:{width}px;height:1000px;border:0" srcdoc="{html.escape(page)}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><meta charset='utf-8'><body>{frame}</body>")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path}/profile",
        "--window-size=1300,1000", "--dump-dom", f"file://{tmp_path}/frame.html",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if ran.returncode:
        pytest.skip(f"Chromium does not start here: {ran.stderr.strip().splitlines()[-1:]}")
    found = json.loads(re.search(r'data-found="([^"]*)"', ran.stdout)[1].replace("&quot;", '"'))
    assert found["width"] == width
    assert found["spill"] <= 0
    assert found["pictures"] == page.count('<svg role="img"') == 17
    assert found["smallest"] >= 9
    assert found["outside"] == []
