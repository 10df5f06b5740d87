"""Losses: nothing to lose where equal, gradients of the formula, means that do not know the batch, padding left out."""

from __future__ import annotations

import dataclasses
import math
import typing

import numpy as np
import pytest
import real_data
import torch
from scipy.special import rel_entr, softmax
from torch import nn

from onnxcomp.errors import DataError, UsageError
from onnxcomp.passes.distill import OF_CLASSES, OF_HINTS, OF_SAMPLES, HintPair, Settings
from onnxcomp.pytorch.distillation.losses import (
    DIST,
    DKD,
    KL,
    LOSSES,
    MSE,
    RKD,
    Attention,
    Cosine,
    Hint,
    Objective,
    Relation,
    Term,
    pairs,
)
from onnxcomp.pytorch.distillation.teacher import OrtTeacher


def logits(samples, positions, generator):
    return torch.randn(samples, positions, 5, generator=generator, dtype=torch.float64)


def hidden(samples, positions, generator):
    return torch.randn(samples, positions, 6, generator=generator, dtype=torch.float64)


def maps(samples, positions, generator, heads=2):
    scores = torch.randn(samples, heads, positions, positions, generator=generator, dtype=torch.float64)
    return scores.softmax(-1)


def embeddings(samples, positions, generator):
    return torch.randn(samples * positions, 6, generator=generator, dtype=torch.float64)


#: each loss with what draws tensors for it
CASES = {
    "kl": (KL(temperature=3.0), logits),
    "dkl": (DKD(temperature=2.0), logits),
    "dist": (DIST(temperature=2.0), logits),
    "mse": (MSE(), hidden),
    "cosine": (Cosine(), hidden),
    "rkd": (RKD(), embeddings),
    "hint": (Hint(), hidden),
    "attention": (Attention(), maps),
    "attention mse": (Attention(kind="mse"), maps),
    "relation": (Relation(heads=2), hidden),
}
EACH = pytest.mark.parametrize("name", CASES)
#: those that take positions within samples, which may be padding
PADDED = pytest.mark.parametrize("name", [name for name in CASES if name != "rkd"])


def drawn(name, samples=3, positions=4, seed=0):
    """(loss, student, teacher)."""
    generator = torch.Generator().manual_seed(seed)
    loss, make = CASES[name]
    return loss, make(samples, positions, generator), make(samples, positions, generator)


def test_the_table_is_tested():
    assert {name.split()[0] for name in CASES} == set(LOSSES)
    for name, (loss, _) in CASES.items():
        assert type(loss) is LOSSES[name.split()[0]]


@EACH
def test_equal_tensors_lose_nothing_others_do(name):
    loss, student, teacher = drawn(name)
    assert abs(loss(teacher, teacher).item()) < 1e-12
    assert loss(student, teacher).item() > 1e-3


@EACH
def test_the_gradient_is_that_of_finite_differences(name):
    loss, student, teacher = drawn(name, samples=2, positions=3)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())


@EACH
def test_the_teacher_has_no_gradient(name):
    loss, student, teacher = drawn(name)
    loss(student.requires_grad_(), teacher.requires_grad_()).backward()
    assert student.grad is not None
    assert teacher.grad is None


@PADDED
def test_a_batch_twice_as_large_loses_as_much(name):
    loss, student, teacher = drawn(name)
    twice = loss(torch.cat([student, student]), torch.cat([teacher, teacher]))
    torch.testing.assert_close(twice, loss(student, teacher))


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("dist", "rkd")])
def test_the_batch_is_the_mean_of_its_samples(name):
    loss, student, teacher = drawn(name)
    alone = [loss(student[i : i + 1], teacher[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(loss(student, teacher), torch.stack(alone).mean())


@PADDED
def test_padding_is_left_out(name):
    """What stands there changes neither loss nor gradient, and both are those of the sample without it."""
    loss, student, teacher = drawn(name, samples=1, positions=5)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    cut = (slice(None), slice(None), slice(0, 3), slice(0, 3)) if name.startswith("attention") else np.s_[:, :3]
    if name.startswith("attention"):  # a masked softmax: padded keys have no share
        student, teacher = (x.masked_fill(mask[:, None, None] == 0, 0) for x in (student, teacher))
        student, teacher = (x / x.sum(-1, keepdim=True) for x in (student, teacher))
    torch.testing.assert_close(loss(student, teacher, mask=mask), loss(student[cut], teacher[cut]))
    other = student.clone()
    padded = torch.ones_like(student, dtype=torch.bool)
    padded[cut] = False
    other[padded] = 0.5
    other.requires_grad_()
    found = loss(other, teacher, mask=mask)
    torch.testing.assert_close(found, loss(student, teacher, mask=mask))
    found.backward()
    assert not other.grad[padded].any()
    assert other.grad[cut].any()


@PADDED
def test_a_batch_of_padding_teaches_nothing(name):
    loss, student, teacher = drawn(name)
    found = loss(student.requires_grad_(), teacher, mask=torch.zeros(3, 4))
    found.backward()
    assert found.item() == 0
    assert not student.grad.any()


@PADDED
def test_a_mask_of_another_length_is_refused(name):
    loss, student, teacher = drawn(name)
    with pytest.raises(DataError, match=r"a mask of \(3, 7\)"):
        loss(student, teacher, mask=torch.ones(3, 7))


@EACH
def test_other_shapes_are_refused(name):
    loss, student, teacher = drawn(name)
    with pytest.raises(UsageError, match="of the student"):
        loss(student[:2], teacher)


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    loss, student, teacher = drawn(name)
    student, teacher = student.to(dtype), teacher.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(student, teacher.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.float(), teacher.float()), rtol=1e-6, atol=1e-7)


def test_a_vector_per_sample_has_no_padding():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 5, generator=generator)
    torch.testing.assert_close(MSE()(student, teacher, mask=torch.zeros(4, 5)), MSE()(student, teacher))
    only = MSE()(student, teacher, mask=torch.tensor([1, 0, 0, 0]))
    torch.testing.assert_close(only, MSE()(student[:1], teacher[:1]))


def test_kl_is_that_of_scipy():
    _, student, teacher = drawn("kl")
    p, q = softmax(teacher.numpy() / 3, -1), softmax(student.numpy() / 3, -1)
    assert KL(temperature=3.0)(student, teacher).item() == pytest.approx(9 * rel_entr(p, q).sum(-1).mean())


@pytest.mark.parametrize("loss", [KL, DKD, DIST])
def test_the_temperature_squared(loss):
    """At T it is T^2 times the loss of scores over T, and at a high T the gradient no longer depends on it."""
    _, student, teacher = drawn("kl")
    at_one = loss(temperature=1.0)(student / 5, teacher / 5)
    torch.testing.assert_close(loss(temperature=5.0)(student, teacher), 25 * at_one)


def test_the_gradient_does_not_fade_with_the_temperature():
    _, student, teacher = drawn("kl")
    sizes = []
    for temperature in (50.0, 500.0):
        student = student.detach().requires_grad_()
        KL(temperature=temperature)(student, teacher).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_classes_along_another_axis():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 4, 4, generator=generator)
    for loss in (KL, DKD, DIST):
        last = loss()(student.movedim(1, -1), teacher.movedim(1, -1))
        torch.testing.assert_close(loss(axis=1)(student, teacher), last)


def test_kl_in_two_parts():
    """Zhao et al. 2022, eq. 6: KL is TCKD + (1 - p of the target) * NCKD."""
    _, student, teacher = drawn("dkl", samples=1, positions=1)
    target = teacher.softmax(-1).max()
    parts = DKD(temperature=1.0, alpha=1.0, beta=1 - target.item())
    torch.testing.assert_close(parts(student, teacher), KL(temperature=1.0)(student, teacher))


def test_the_target_class_is_the_label_or_else_the_teachers_choice():
    _, student, teacher = drawn("dkl")
    choice, other = teacher.argmax(-1), teacher.argmin(-1)
    torch.testing.assert_close(DKD()(student, teacher, labels=choice), DKD()(student, teacher))
    assert DKD()(student, teacher, labels=other).item() != pytest.approx(DKD()(student, teacher).item(), rel=1e-2)
    with pytest.raises(DataError, match="outside of 0 to 4"):
        DKD()(student, teacher, labels=other + 5)
    with pytest.raises(DataError, match="class numbers"):
        DKD()(student, teacher, labels=other[0])


def test_labels_of_padding_do_not_count():
    _, student, teacher = drawn("dkl")
    labels, mask = teacher.argmax(-1), torch.ones(3, 4)
    mask[:, 2:] = 0
    labels[:, 2:] = -100
    torch.testing.assert_close(DKD()(student, teacher, labels=labels, mask=mask), DKD()(student[:, :2], teacher[:, :2]))


def test_dist_is_pearsons_correlation():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 7, 5, generator=generator)
    s, t = softmax(student.numpy(), -1), softmax(teacher.numpy(), -1)
    inter = np.mean([1 - np.corrcoef(s[i], t[i])[0, 1] for i in range(7)])
    intra = np.mean([1 - np.corrcoef(s[:, j], t[:, j])[0, 1] for j in range(5)])
    found = DIST(beta=2.0, gamma=3.0)(student, teacher).item()
    assert found == pytest.approx(2 * inter + 3 * intra, rel=1e-5)
    assert DIST(gamma=100.0)(student[:1], teacher[:1]).item() == pytest.approx(
        1 - np.corrcoef(s[0], t[0])[0, 1], rel=1e-5
    )


def test_dist_leaves_the_student_its_own_sharpness():
    teacher = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    flatter = (0.5 * teacher.softmax(-1) + 0.1).log()
    assert DIST()(flatter, teacher).item() == pytest.approx(0, abs=1e-6)
    assert KL(temperature=1.0)(flatter, teacher).item() > 0.01


def test_cosine_does_not_know_the_length():
    _, student, teacher = drawn("cosine")
    torch.testing.assert_close(Cosine()(7 * student, teacher), Cosine()(student, teacher))


def test_rkd_is_the_formula():
    """Pairs and triplets one by one, in numpy."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 3, generator=generator), torch.randn(5, 7, generator=generator)

    def facts(x):
        pairs = [np.linalg.norm(x[i] - x[j]) for i in range(5) for j in range(5) if i != j]
        triplets = [(i, j, k) for i in range(5) for j in range(5) for k in range(5) if len({i, j, k}) == 3]
        arms = [(x[j] - x[i], x[k] - x[i]) for i, j, k in triplets]
        angles = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in arms]
        return np.array(pairs) / np.mean(pairs), np.array(angles)

    def huber(s, t):
        far = np.abs(s - t)
        return np.where(far < 1, far**2 / 2, far - 0.5).mean()

    expected = [huber(s, t) for s, t in zip(facts(student.numpy()), facts(teacher.numpy()), strict=True)]
    assert RKD(distance=3.0, angle=5.0)(student, teacher).item() == pytest.approx(
        3 * expected[0] + 5 * expected[1], rel=1e-5
    )


def test_rkd_lets_a_student_turn_and_stretch():
    _, student, _ = drawn("rkd")
    turned, _ = torch.linalg.qr(torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert RKD()(7 * student @ turned.T + 3, student).item() == pytest.approx(0, abs=1e-12)
    assert MSE()(7 * student @ turned.T[:, :6] + 3, student).item() > 1


def test_rkd_does_not_grow_with_the_batch():
    """Pairs within a batch stand for all pairs: the mean over halves of many samples is that of all."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 120, 6, generator=generator)
    parts = [RKD()(student[i : i + 20], teacher[i : i + 20]).item() for i in range(0, 120, 20)]
    assert np.mean(parts) == pytest.approx(RKD()(student, teacher).item(), rel=0.05)


def test_rkd_of_equal_and_of_few_samples_has_a_gradient():
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 2, 4):
        student = torch.randn(count, 6, generator=generator).repeat(2 if count == 4 else 1, 1).requires_grad_()
        found = RKD()(student, torch.randn(len(student), 6, generator=generator))
        found.backward()
        assert torch.isfinite(found)
        assert torch.isfinite(student.grad).all()
        assert student.grad.any() == (count > 2)
    with pytest.raises(UsageError, match=r"shape \(3, 4, 6\) of the student"):
        RKD()(torch.zeros(3, 4, 6), torch.zeros(3, 4, 6))
    mask = torch.tensor([1, 1, 1, 0])
    student, teacher = torch.randn(2, 4, 6, generator=generator)
    torch.testing.assert_close(RKD()(student, teacher, mask=mask), RKD()(student[:3], teacher[:3]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b", ("a", "b", "hint")),
        ("a=b:relation", ("a", "b", "relation")),
        ("add:0=sub:0", ("add:0", "sub:0", "hint")),
        ("add:0=sub:0:mse", ("add:0", "sub:0", "mse")),
        ("onnx::Add_7=onnx::MatMul_9", ("onnx::Add_7", "onnx::MatMul_9", "hint")),
    ],
)
def test_hints_as_text(text, expected):
    assert dataclasses.astuple(HintPair.parse(text)) == expected


@pytest.mark.parametrize("text", ["a", "=b", "a=", "a=:mse", "a=b:atention", "a=b:realtion"])
def test_what_is_no_hint_is_refused(text):
    with pytest.raises(UsageError, match=r"not of the form|a hint has no loss"):
        Settings(hint=(text,))


def test_the_names_are_those_of_the_table():
    """What the options say without torch is what there is with it."""
    loss = typing.get_type_hints(Settings)["loss"]
    assert {*typing.get_args(loss), *OF_HINTS} == set(LOSSES)
    assert {*OF_CLASSES, *OF_SAMPLES} < set(LOSSES)


@pytest.mark.parametrize("loss", [KL, DKD, DIST])
def test_one_class_says_nothing(loss):
    with pytest.raises(UsageError, match="two classes"):
        loss()(torch.zeros(3, 1), torch.zeros(3, 1))


@pytest.mark.parametrize(
    "make", [lambda: KL(temperature=0), lambda: DKD(beta=-1), lambda: DIST(gamma=math.nan), lambda: Relation(heads=0)]
)
def test_senseless_options_are_refused(make):
    with pytest.raises(UsageError, match="must"):
        make()


def test_a_projector_where_the_widths_differ():
    """Of images it is a 1 x 1 convolution, and trained along."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 5), torch.randn(2, 7, 5, 5)
    loss = Hint()
    with pytest.raises(UsageError, match="no projector"):
        loss(student, teacher)
    loss.prepare(student, teacher)
    same = nn.Conv2d(3, 7, 1)
    same.load_state_dict({"weight": loss.projector.weight[..., None, None], "bias": loss.projector.bias})
    torch.testing.assert_close(loss(student, teacher), nn.functional.mse_loss(same(student), teacher))
    loss(student, teacher).backward()
    assert all(parameter.grad.any() for parameter in loss.parameters())
    with pytest.raises(UsageError, match="those of the projector"):
        loss(torch.randn(2, 4, 5, 5), teacher)
    with pytest.raises(UsageError, match=r"\(2, 7, 3, 3\) of the teacher") as caught:
        Hint().prepare(student, torch.randn(2, 7, 3, 3))
    assert "axis 1 alone" in caught.value.hint


def test_no_projector_where_the_widths_are_equal():
    loss, student, teacher = drawn("hint")
    loss.prepare(student, teacher)
    assert not list(loss.parameters())
    torch.testing.assert_close(loss(student, teacher), MSE()(student, teacher))


def test_the_projector_takes_the_gradient_of_finite_differences():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    loss = Hint()
    loss.prepare(student, teacher)
    loss.double()
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher, mask=torch.tensor([[1, 1, 0, 0]] * 2)), student.requires_grad_()
    )


def test_relations_need_neither_equal_widths_nor_heads():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 5, 8, generator=generator)
    teacher = torch.randn(2, 3, 5, 4, generator=generator)  # (samples, heads, positions, width of a head)
    joined = teacher.transpose(1, 2).reshape(2, 5, 12)
    torch.testing.assert_close(Relation(heads=4)(student, teacher), Relation(heads=4)(student, joined))
    with pytest.raises(UsageError, match="do not divide the student's width 8"):
        Relation(heads=6)(student, teacher)
    torch.testing.assert_close(Relation()(student, teacher), Relation(heads=4)(student, teacher))  # 4 divides 8 and 12
    with pytest.raises(UsageError, match="2 heads of the student, 3 of the teacher") as caught:
        Attention()(torch.rand(1, 2, 5, 5), torch.rand(1, 3, 5, 5))
    assert "relation" in caught.value.hint
    turned, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    assert Relation(heads=1)(student @ turned, student).item() == pytest.approx(0, abs=1e-6)


def test_the_objective_is_the_weighted_sum():
    generator = torch.Generator().manual_seed(0)
    student = {"scores": torch.randn(6, 5, generator=generator), "h": torch.randn(6, 3, generator=generator)}
    teacher = {"y": torch.randn(6, 5, generator=generator), "inner": torch.randn(6, 4, generator=generator)}
    labels = torch.arange(6) % 5
    objective = Objective(
        [Term(KL(), "scores", "y", 2.0), Term(Hint(), "h", "inner", 0.5)], labels_weight=0.25, scores="scores"
    )
    objective.prepare(student, teacher)
    assert [tuple(p.shape) for p in objective.parameters()] == [(4, 3), (4,)]
    found = objective(student, teacher, labels=labels)
    assert list(found.parts) == ["kl scores=y", "hint h=inner", "labels"]
    kl, hint, supervised = found.parts.values()
    torch.testing.assert_close(supervised, nn.functional.cross_entropy(student["scores"], labels))
    torch.testing.assert_close(found.total.detach(), 0.75 * (2 * kl + 0.5 * hint) + 0.25 * supervised)
    with pytest.raises(DataError, match="no labels"):
        objective(student, teacher)


def test_the_control_run_needs_no_teacher():
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    objective = Objective([], labels_weight=1.0, scores="y")
    objective.prepare({"y": scores}, {})
    found = objective({"y": scores}, {}, labels=torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(found.total, nn.functional.cross_entropy(scores, torch.tensor([0, 1, 2, 0])))
    with pytest.raises(UsageError, match="no loss"):
        Objective([])


def test_errors_name_the_term():
    objective = Objective([Term(KL(), "scores", "y")])
    with pytest.raises(UsageError, match=r"shape \(2, 3\) of the student, \(2, 4\) of the teacher \(kl scores=y\)"):
        objective.prepare({"scores": torch.zeros(2, 3)}, {"y": torch.zeros(2, 4)})
    with pytest.raises(UsageError, match=r"the student gives no such tensor \(scores\)") as caught:
        objective({"score": torch.zeros(2, 3)}, {"y": torch.zeros(2, 3)})
    assert caught.value.hint == "did you mean 'score'?"


def test_outputs_go_together_by_name_or_else_by_place():
    assert pairs(["b"], ["a", "b"]) == (("b", "b"),)
    assert pairs(["x", "y"], ["a", "b"]) == (("x", "a"), ("y", "b"))
    with pytest.raises(UsageError, match=r"are x, b, the teacher's a, b \(x\)"):
        pairs(["x", "b"], ["a", "b"])
    with pytest.raises(UsageError, match="x"):
        pairs(["x"], ["a", "b"])


def test_a_small_head_learns_a_real_teacher(shared):
    """Snips: attention of the teacher is a probability, and each loss falls as its gradient says."""
    arrays = real_data.snips_calibration(shared / "data")
    path = shared / "models/snips_transformer.onnx"
    given = OrtTeacher(path, hints=("softmax", "layer_norm_4")).outputs({"ids": arrays["ids"][:16]})
    torch.testing.assert_close(given["softmax"].sum(-1), torch.ones(16, 4, 32))
    for name, loss, target in (
        ("kl", KL(), given["logits"]),
        ("dkl", DKD(), given["logits"]),
        ("dist", DIST(), given["logits"]),
        ("attention", Attention(), given["softmax"]),
        ("relation", Relation(heads=4), given["layer_norm_4"]),
    ):
        torch.manual_seed(0)
        student = (0.3 * torch.randn(target.shape)).requires_grad_()
        optimizer = torch.optim.Adam([student], lr=0.05)
        lost = []
        for _ in range(40):
            found = loss(student.softmax(-1) if name == "attention" else student, target)
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
            lost.append(found.item())
        assert lost[-1] < 0.5 * lost[0], name
