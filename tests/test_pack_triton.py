"""The Triton layout: `config.pbtxt` is read back by protobuf's own parser, with the fields of Triton's schema."""

from __future__ import annotations

import json

import builders
import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from onnxcomp import pack
from onnxcomp.errors import DataError, UnsupportedError
from onnxcomp.model import InputSpec, Signature
from onnxcomp.pack import proof, triton
from onnxcomp.settings.host import Host

FIELD = descriptor_pb2.FieldDescriptorProto

#: message -> (field, number, type or name of a message, repeated), as in Triton's model_config.proto
SCHEMA = {
    "Reshape": [("shape", 1, FIELD.TYPE_INT64, True)],
    "Input": [
        ("name", 1, FIELD.TYPE_STRING, False),
        ("data_type", 2, "DataType", False),
        ("dims", 4, FIELD.TYPE_INT64, True),
        ("reshape", 5, "Reshape", False),
    ],
    "Output": [
        ("name", 1, FIELD.TYPE_STRING, False),
        ("data_type", 2, "DataType", False),
        ("dims", 3, FIELD.TYPE_INT64, True),
        ("reshape", 5, "Reshape", False),
    ],
    "Group": [("count", 2, FIELD.TYPE_INT32, False), ("kind", 4, "Kind", False)],
    "Batching": [
        ("preferred_batch_size", 1, FIELD.TYPE_INT32, True),
        ("max_queue_delay_microseconds", 2, FIELD.TYPE_UINT64, False),
    ],
    "Parameter": [("string_value", 1, FIELD.TYPE_STRING, False)],
    "Entry": [("key", 1, FIELD.TYPE_STRING, False), ("value", 2, "Parameter", False)],
    "ModelConfig": [
        ("name", 1, FIELD.TYPE_STRING, False),
        ("max_batch_size", 4, FIELD.TYPE_INT32, False),
        ("input", 5, "Input", True),
        ("output", 6, "Output", True),
        ("instance_group", 7, "Group", True),
        ("default_model_filename", 8, FIELD.TYPE_STRING, False),
        ("dynamic_batching", 11, "Batching", False),
        ("parameters", 14, "Entry", True),
        ("backend", 17, FIELD.TYPE_STRING, False),
    ],
}
ENUMS = {
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
    "DataType": [
        *("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8"),
        *("TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16"),
    ],
}


def _config_class() -> type:
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="t", syntax="proto3")
    for name, values in ENUMS.items():
        file.enum_type.add(name=name).value.extend(
            descriptor_pb2.EnumValueDescriptorProto(name=v, number=i) for i, v in enumerate(values)
        )
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = FIELD.LABEL_REPEATED if repeated else FIELD.LABEL_OPTIONAL
            made = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                made.type = FIELD.TYPE_ENUM if kind in ENUMS else FIELD.TYPE_MESSAGE
                made.type_name = f".t.{kind}"
            else:
                made.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))


CONFIG = _config_class()
HOST = Host("1.32.0", "x86_64", ("avx2",))


def parsed(inputs: list[InputSpec], outputs: list[InputSpec], **plan: float):
    signature = Signature(tuple(inputs), tuple(outputs))
    return text_format.Parse(triton.config("m", signature, triton.Plan(**{"workers": 3, **plan}), HOST), CONFIG())


def spec(name: str, dtype: str, *shape: int | str | None) -> InputSpec:
    return InputSpec(name, dtype, shape)


def test_a_model_with_a_common_batch_axis():
    ids = spec("ids", "int64", "batch", "seq")
    found = parsed([ids, spec("scale", "float16", "batch")], [spec("y", "float32", "batch", 384)])
    assert found.name == "m"
    assert found.backend == "onnxruntime"
    assert found.max_batch_size == 4
    assert [list(i.dims) for i in found.input] == [[-1], [1]]
    assert [i.data_type for i in found.input] == [9, 10]
    assert found.input[1].HasField("reshape")
    assert not found.input[0].HasField("reshape")
    assert list(found.output[0].dims) == [384]
    assert [(g.count, g.kind) for g in found.instance_group] == [(3, 2)]
    assert not found.HasField("dynamic_batching")
    assert {p.key: p.value.string_value for p in found.parameters} == {
        "intra_op_thread_count": "1",
        "inter_op_thread_count": "1",
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [((2, 8), (2, 4)), (("n", 8), ("m", 4)), ((None, 8), (None, 4)), (("n", 8), ()), (("n", 8), (4,))],
)
def test_no_common_batch_axis(first, second):
    found = parsed([spec("x", "float32", *first)], [spec("y", "float32", *second)])
    assert found.max_batch_size == 0
    assert list(found.input[0].dims) == [d if isinstance(d, int) else -1 for d in first]
    assert list(found.output[0].dims) == [d if isinstance(d, int) else -1 for d in second] or [1]
    assert found.output[0].HasField("reshape") == (second == ())


def test_a_plan_sets_batching_and_threads():
    found = parsed([spec("x", "string", "n", 8)], [spec("y", "bfloat16", "n")], threads=2, batch=16, queue_delay_ms=2.5)
    assert found.max_batch_size == 16
    assert list(found.dynamic_batching.preferred_batch_size) == [16]
    assert found.dynamic_batching.max_queue_delay_microseconds == 2500
    assert found.parameters[0].value.string_value == "2"
    assert [found.input[0].data_type, found.output[0].data_type] == [13, 14]


def test_names_with_all_characters():
    name = 'serving "default"\\ö\n:0'
    found = parsed([spec(name, "float32", 1)], [spec("y", "float32", 1)])
    assert found.input[0].name == name


@pytest.mark.parametrize("output", [InputSpec("y", "map", (1,)), InputSpec("y", "float32", None)])
def test_what_triton_cannot_pass(output):
    with pytest.raises(UnsupportedError, match="Triton cannot pass"):
        parsed([spec("x", "float32", 1)], [output])


@pytest.mark.parametrize(
    ("plan", "wanted"),
    [
        ({}, triton.Plan(workers=5, batch=1)),
        ({"workers": 2, "threads": 4, "batch": 8, "price": 3}, triton.Plan(workers=2, threads=4, batch=8)),
        ({"best": {"batch": 8, "queue_delay_ms": 1}}, triton.Plan(workers=5, batch=8, queue_delay_ms=1.0)),
    ],
)
def test_plans(plan, wanted, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert triton.read_plan(tmp_path / "plan.json", 5) == wanted


@pytest.mark.parametrize(
    "plan", [{"batch": 0}, {"workers": "2"}, {"threads": True}, {"best": 3}, {"queue_delay_ms": -1}]
)
def test_plans_that_make_no_sense(plan, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(DataError):
        triton.read_plan(tmp_path / "plan.json", 5)


def test_the_folder(tmp_path, monkeypatch):
    sharing = proof.Sharing(
        workers=2,
        plain_pss_bytes=2,
        pack_pss_bytes=1,
        base_pss_bytes=0,
        plain_private_bytes=9 << 20,
        pack_private_bytes=0,
        least_private_bytes=0,
        packed_bytes=0,
    )
    found = proof.Proof(identical=True, runs=1, sharing=sharing, warnings=())
    asked = []
    monkeypatch.setattr(proof, "prove", lambda *args, workers, settings: asked.append(workers) or found)
    path = builders.save(builders.mlp(width=512), tmp_path / "m.onnx")
    (tmp_path / "plan.json").write_text('{"workers": 3, "batch": 2}')
    made = pack.pack(path, tmp_path / "mlp", layout="triton", plan=tmp_path / "plan.json").manifest
    assert asked == [3]
    assert made.model == "1/model.onnx"
    assert sorted(p.name for p in (tmp_path / "mlp").iterdir()) == ["1", "config.pbtxt", "pack.json", "portable"]
    config = text_format.Parse((tmp_path / "mlp/config.pbtxt").read_text(), CONFIG())
    assert (config.name, config.max_batch_size, config.instance_group[0].count) == ("mlp", 2, 3)
    x = builders.samples(2, 16)
    served = ort.InferenceSession(tmp_path / "mlp/1" / config.default_model_filename)
    (wanted,) = ort.InferenceSession(path).run(None, {"x": x})
    assert np.array_equal(served.run([config.output[0].name], {config.input[0].name: x})[0], wanted)
    assert pack.open(tmp_path / "mlp").path == tmp_path / "mlp/1/model.onnx"
