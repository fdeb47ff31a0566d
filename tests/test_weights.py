import zipfile

import pytest
import torch
from safetensors.torch import save_file

from ctf.errors import InputError
from ctf.weights import read_checkpoint, read_state_dict

STATE = {"layers.0.attention.wo.weight": torch.ones(2, 2), "norm.weight": torch.zeros(2)}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict"])
def test_prefixes_of_ddp_and_compile_are_removed(prefix, wrapper):
    prefixed = {prefix + name: tensor for name, tensor in STATE.items()}
    assert read_state_dict({wrapper: prefixed} if wrapper else prefixed) == STATE


def test_prefixes_of_wrapped_submodules_are_removed():
    inner = {
        "layers.0._orig_mod.attention._fsdp_wrapped_module.wo.weight": STATE["layers.0.attention.wo.weight"],
        "norm._checkpoint_wrapped_module.weight": STATE["norm.weight"],
    }
    assert read_state_dict(inner) == STATE


def test_a_name_that_only_ends_like_a_prefix_stays():
    assert list(read_state_dict({"submodule.weight": torch.ones(1)})) == ["submodule.weight"]


def test_two_models_in_one_state_dict_are_refused():
    with pytest.raises(InputError, match="both with and without a prefix"):
        read_state_dict({**STATE, "module.norm.weight": torch.ones(2)})


@pytest.mark.parametrize("ending", ["pt", "pth", "ckpt", "bin", "safetensors", "npy", ""])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_the_format_is_recognised_by_content(ending, save, tmp_path):
    path = tmp_path / f"weights.{ending}"
    save(STATE, path)
    found = read_checkpoint(path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_the_old_format_of_torch_save_is_read(tmp_path):
    torch.save(STATE, tmp_path / "weights.safetensors", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "weights.safetensors").keys() == STATE.keys()


def test_another_format_is_not_called_truncated(tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.pt", "w") as archive:
        archive.writestr("a.png", b"")
    (tmp_path / "weights.ckpt").write_text("0,1\n")
    for name in ("pictures.pt", "weights.ckpt"):
        with pytest.raises(InputError, match=rf"{name} is neither a safetensors file nor a PyTorch checkpoint"):
            read_checkpoint(tmp_path / name)


def test_a_damaged_directory_is_not_a_traceback(tmp_path):
    torch.save(STATE, tmp_path / "weights.pt")
    content = bytearray((tmp_path / "weights.pt").read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory : directory + 4] = b"XXXX"
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pt is truncated or not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "weights.pt")
