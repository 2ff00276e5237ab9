"""Which mode of `perf.compile` a run gets, and the error where it cannot have one."""

from __future__ import annotations

import logging
import shutil
import sysconfig

import pytest
from torch import nn

from data_prep.errors import UserError
from tests.models.tiny import tiny_minigpt
from training.compiling.compiled import BatchShapes
from training.compiling.install import check_compile, find_obstacle, install_compile
from training.compiling.modes import MODES, OFF, find_mode

SHAPES = BatchShapes(2, 8)


def test_auto_is_off_and_leaves_the_model_as_it_is():
    model = tiny_minigpt()
    assert install_compile(model, "auto", SHAPES, device_type="cpu") is OFF
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_blocks_are_the_decoder_layers(caplog):
    model = tiny_minigpt()
    with caplog.at_level(logging.INFO, logger="redline.models"):
        install_compile(model, "blocks", SHAPES, device_type="cpu")
    assert [module for module in model.modules() if module._compiled_call_impl] == list(model.model.layers)
    assert caplog.messages == ["compile: blocks (each decoder layer; passes without gradients run uncompiled)"]


def test_model_is_everything_but_the_head():
    model = tiny_minigpt()
    install_compile(model, "model", SHAPES, device_type="cpu")
    assert [module for module in model.modules() if module._compiled_call_impl] == [model.model]


@pytest.mark.parametrize("mode", ["blocks", "model"])
def test_a_model_without_such_modules_is_refused(mode):
    with pytest.raises(
        UserError, match=f"perf.compile: '{mode}' cannot be used: Linear has no module that it compiles"
    ):
        install_compile(nn.Linear(2, 2), mode, SHAPES, device_type="cpu")


def test_zero_3_is_refused():
    with pytest.raises(UserError, match="'blocks' cannot be used: zero_optimization.stage is 3.*set stage 1 or 2"):
        check_compile("blocks", "cpu", {"zero_optimization": {"stage": 3}})
    assert check_compile("off", "cpu", {"zero_optimization": {"stage": 3}}) is OFF
    assert find_obstacle(find_mode("model"), "cpu", {"zero_optimization": {"stage": 2}}) is None


def test_what_is_missing_on_the_machine_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(UserError, match="TORCHDYNAMO_DISABLE is 1: unset it; or use 'off'"):
        check_compile("blocks", "cpu")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(UserError, match="headers of Python"):
        check_compile("blocks", "cpu")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and there is none of g\+\+"):
        check_compile("model", "cpu")
    monkeypatch.setenv("CXX", "nowhere")
    with pytest.raises(UserError, match="CXX = nowhere is no program"):
        check_compile("model", "cpu")
    assert check_compile("auto", "cpu") is OFF


def test_every_mode_says_what_it_compiles():
    assert [mode.name for mode in MODES] == ["off", "blocks", "model"]
    assert all(mode.compiles and mode.graphs for mode in MODES)
