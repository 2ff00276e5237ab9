"""Weights that are missing, cut short or pointers, told without reading a tensor."""

import json

import pytest
import torch
from safetensors.torch import save_file

from data_prep.errors import UserError
from training.models.weight_files import check_weight_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n"


@pytest.fixture
def model(tmp_path):
    save_file({"a": torch.ones(3, 5), "b": torch.ones(7)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_whole_weights_pass(model):
    check_weight_files(model)
    (model / "model.safetensors").rename(model / "part-1.safetensors")
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-1.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    check_weight_files(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-4], "its header says .*: cut short"),
        (lambda content: content[:40], "is damaged"),
        (lambda content: content[:3], "is damaged"),
        (lambda content: b"", "is damaged"),
        (lambda content: content[:8] + b"x" + content[9:], "its header is no JSON"),
        (lambda content: POINTER.encode(), "is a pointer of Git LFS"),
    ],
)
def test_a_damaged_file(model, change, message):
    file = model / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=message):
        check_weight_files(model)


def test_files_that_are_missing(tmp_path):
    with pytest.raises(UserError, match="holds no weights"):
        check_weight_files(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))
    with pytest.raises(UserError, match=r"part-1\.safetensors is missing"):
        check_weight_files(tmp_path)
    index.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        check_weight_files(tmp_path)
