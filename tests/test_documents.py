"""JSON that reads back as it was written, with samples on one line each."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp import documents
from onnxcomp.errors import DataError, OutputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), VALUES | st.lists(st.integers() | st.floats(-1e9, 1e9))))
def test_what_is_written_reads_back(document):
    assert json.loads(documents.to_text(document)) == document


@pytest.mark.parametrize("text", ["shape [1, 2]", "[1, 3, 224, 224]", "[\n1,\n 2]", "E [ - ] e"])
def test_texts_that_quote_a_list_stay_as_they_are(text):
    assert json.loads(documents.to_text({"note": text, text: [text]})) == {"note": text, text: [text]}


def test_numbers_stand_on_one_line_and_all_else_is_indented():
    document = {"samples": [1, -2.5, 1e-9], "nested": [[1, 2], [3]], "names": ["a", "b"], "none": []}
    assert documents.to_text(document) == (
        '{\n  "samples": [1,-2.5,1e-09],\n  "nested": [\n    [1,2],\n    [3]\n  ],\n'
        '  "names": [\n    "a",\n    "b"\n  ],\n  "none": []\n}\n'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_json_is_a_bug(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        documents.to_text({"value": [value]})


def test_a_file_reads_back(tmp_path):
    document = {"schema": "onnxcomp/x/1", "text": "größer", "samples": [1, 2, 3]}
    (tmp_path / "a.json").write_text(documents.to_text(document))
    assert documents.read(tmp_path / "a.json") == document


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"7", "not a JSON object"),
    ],
    ids=["empty", "cut", "bytes", "lists", "objects", "list", "number"],
)
def test_a_damaged_file_is_a_data_error_that_names_it(tmp_path, data, text):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=text) as error:
        documents.read(path)
    assert error.value.where == str(path)


def test_a_file_that_cannot_be_read_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="no such file"):
        documents.read(tmp_path / "missing.json")
    with pytest.raises(OutputError, match="folder"):
        documents.read(tmp_path)
