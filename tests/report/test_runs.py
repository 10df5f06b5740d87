"""What the report takes: results, records, folders of these; a typed error for any other file."""

from __future__ import annotations

import json

import pytest
import results

from onnxcomp.cli import work
from onnxcomp.errors import DataError, OutputError
from onnxcomp.report import runs


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "runs"
    place.mkdir()
    (place / "b.json").write_text(json.dumps(results.bench()))
    (place / "a.record.json").write_text(json.dumps(results.record()))
    (place / "settings.json").write_text(json.dumps({"schema": "onnxcomp/settings/1"}))
    (place / "list.json").write_text("[1, 2]")
    (place / "notes.txt").write_text("no")
    return place


def test_a_folder_gives_its_results_by_name(folder):
    assert [path.name for path in runs.read([folder])] == ["a.record.json", "b.json"]


def test_a_demo_stands_for_its_records(folder):
    (folder / "demo.json").write_text(json.dumps(results.demo()))
    assert [path.name for path in runs.read([folder])] == ["demo.json"]


def test_files_and_folders_in_their_order_and_once(folder):
    found = runs.read([folder / "b.json", folder])
    assert [path.name for path in found] == ["b.json", "a.record.json"]


@pytest.mark.parametrize(
    ("name", "message"), [("settings.json", "no section for results of the schema 'onnxcomp/settings/1'"),
                          ("list.json", "not a JSON object"), ("notes.txt", "not JSON")],
)  # fmt: skip
def test_a_file_that_is_no_result_is_named(folder, name, message):
    with pytest.raises(DataError, match=message) as caught:
        runs.read([folder / "b.json", folder / name])
    assert caught.value.where == str(folder / name)


def test_json_without_a_schema_and_empty_folders(folder, tmp_path):
    (folder / "plain.json").write_text("{}")
    with pytest.raises(DataError, match="not a result"):
        runs.read([folder / "plain.json"])
    with pytest.raises(DataError, match=r"holds no \.json result"):
        runs.read([tmp_path / "runs" / ".."])
    with pytest.raises(OutputError):
        runs.read([tmp_path / "no.json"])


def test_the_ending_decides_the_form(folder, tmp_path):
    for name, start in (("r.md", "# Title\n"), ("r.html", "<!doctype html>")):
        done = work.report([str(folder)], str(tmp_path / name), title="Title", force=False)
        assert (tmp_path / name).read_text().startswith(start)
        assert [path.rsplit("/", 1)[1] for path in done["runs"]] == ["a.record.json", "b.json"]
    with pytest.raises(OutputError, match="exists"):
        work.report([str(folder)], str(tmp_path / "r.md"), title="Title", force=False)
