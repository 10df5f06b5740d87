"""A module that is called like its main function stays a module."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

import onnxcomp
from onnxcomp.callable import make_callable


@pytest.fixture
def module(monkeypatch):
    module = types.ModuleType("fake_verb")
    monkeypatch.setitem(sys.modules, "fake_verb", module)
    return module


def test_the_call_goes_to_the_function_with_all_arguments(module):
    module.other = 7
    make_callable("fake_verb", lambda *args, **options: (args, options))
    assert module(1, b=2) == ((1,), {"b": 2})
    assert module.other == 7
    assert isinstance(module, types.ModuleType)


def test_what_the_function_raises_comes_out(module):
    make_callable("fake_verb", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module()


def test_only_the_named_module_becomes_callable(module):
    other = types.ModuleType("other_verb")
    make_callable("fake_verb", len)
    assert not callable(other)


@pytest.mark.parametrize("name", ["inspect", "evaluate", "bench"])
def test_the_public_verb_works_before_and_after_its_module_is_imported(name):
    assert callable(getattr(onnxcomp, name))
    module = importlib.import_module(f"onnxcomp.{name}")
    assert isinstance(module, types.ModuleType)
    assert callable(module)
    assert callable(getattr(onnxcomp, name))
