"""Fake CUDA tensors under a CPU build of PyTorch: shapes, dtypes, strides and devices, without values.

Importing this module changes PyTorch for the whole process, so it is for processes of its own, and comes first there.
They are started with `guard.cpp`, compiled, as LD_PRELOAD: PyTorch asks for its CUDA hooks while it is loaded.
"""

import contextlib
import traceback
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from watched import what_waits

import ctf.device

ctf.device.gpu_compiles = lambda: True  # before it is imported from there

import ctf.models.attention  # noqa: E402

aten = torch.ops.aten
FAKE = FakeTensorMode(allow_non_fake_inputs=True)
#: Where the host would wait: what for, and the line.
WAITS: list[tuple[str, str]] = []
#: What processes exchange: the operation, the type and the number of values.
COLLECTIVES: list[tuple[str, torch.dtype, int]] = []
#: Attention that no fused kernel takes.
UNFUSED: list[tuple[str, str]] = []


def where():
    """The innermost line of the package that runs now."""
    for frame in reversed(traceback.extract_stack()):
        if "/ctf/" in frame.filename:
            return f"{frame.filename.split('/ctf/')[-1]}, line {frame.lineno}, {frame.name}"
    return "?"


# --- torch.cuda ---


class Stream:
    def __init__(self, *args, **kwargs):
        self.device = torch.device("cuda", 0)

    def record_event(self, event=None):
        return MagicMock()

    def wait_stream(self, stream): ...
    def wait_event(self, event): ...


@contextlib.contextmanager
def nothing(*args, **kwargs):
    yield


PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132
)
STAND_INS = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "_lazy_init": lambda: None,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "is_bf16_supported": lambda *args, **kwargs: True,
    "get_device_capability": lambda *args: (9, 0),
    "get_device_properties": lambda *args: PROPERTIES,
    "get_device_name": lambda *args: PROPERTIES.name,
    "synchronize": lambda *args: WAITS.append(("synchronize", where())),
    "empty_cache": lambda: None,
    "is_current_stream_capturing": lambda: False,
    "current_stream": Stream,
    "Stream": Stream,
    "Event": MagicMock,
    "CUDAGraph": MagicMock,
    "graph": nothing,
    "stream": nothing,
    "device": nothing,
    "manual_seed_all": lambda seed: None,
}
for name, stand_in in STAND_INS.items():
    setattr(torch.cuda, name, stand_in)

_tolist, _numpy = Tensor.tolist, Tensor.numpy


def _zeros(tensor):
    if tensor.device.type == "cuda":
        WAITS.append(("values read", where()))
    return np.zeros(tensor.shape).tolist()


torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.compile = lambda function=None, **settings: function
# cuDNN's choice; a CPU build has none.
torch._C._conv_determine_backend_memory_format = lambda x, weight, backend: suggest_memory_format(weight)
FakeTensorMode.avoid_device_init = property(lambda self: True)
Tensor.tolist = lambda self: _zeros(self) if isinstance(self, FakeTensor) else _tolist(self)
Tensor.numpy = lambda self: np.array(_zeros(self)) if isinstance(self, FakeTensor) else _numpy(self)
Tensor.pin_memory = lambda self, *args: self.clone()
Tensor.record_stream = lambda self, stream: None

# --- modules whose tensors are fake ---


def to_fake_cuda(module):
    """The module with parameters and buffers replaced by fake ones on a GPU, wherever they were."""
    made = {}
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None and id(tensor) not in made:
                    with FAKE:
                        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda:0")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                if tensor is not None:
                    store[name] = made[id(tensor)]
    return module


def _is_fake(module):
    return any(isinstance(p, FakeTensor) for p in module.parameters())


def _deepcopy(self, memo):
    if isinstance(self, nn.Parameter):
        copied = nn.Parameter(self.detach().clone(), self.requires_grad)
    elif isinstance(self, FakeTensor):
        copied = self.detach().clone().requires_grad_(self.requires_grad)
    else:
        with _disable_current_modes():  # maps keep their values
            return _real_deepcopy(self, memo)
    return memo.setdefault(id(self), copied)


_real_deepcopy, _real_to = Tensor.__deepcopy__, nn.Module.to
Tensor.__deepcopy__ = FakeTensor.__deepcopy__ = _deepcopy
nn.Parameter.__deepcopy__ = lambda self, memo: memo[id(self)] if id(self) in memo else _deepcopy(self, memo)
nn.Module.to = lambda self, *args, **kwargs: self if _is_fake(self) else _real_to(self, *args, **kwargs)

# --- attention ---

_sdpa = F.scaled_dot_product_attention


def fused_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """The kernel that a GPU takes (aten/native/transformers/cuda/sdp_utils.cpp), with the strides of its result."""
    if q.device.type != "cuda":
        return _sdpa(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    half, dim, grouped = q.dtype in (torch.bfloat16, torch.float16), q.shape[-1], q.shape[1] != k.shape[1]
    plain = attn_mask is None and not (is_causal and q.shape[2] != k.shape[2])  # flash attention takes nothing else
    common = plain and q.ndim == 4 and q.dtype == k.dtype == v.dtype and all(x.stride(-1) == 1 for x in (q, k, v))
    if common and half and dim <= 256 and dim % 8 == 0 and (not grouped or enable_gqa):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[0]
    if common and not grouped and dim % (8 if half else 4) == 0:
        keeps = torch.is_grad_enabled() and q.requires_grad
        found = aten._scaled_dot_product_efficient_attention(
            q, k, v, attn_mask, keeps, dropout_p, is_causal, scale=scale
        )
        return found[0]
    UNFUSED.append((f"attention of {q.dtype}, {tuple(q.shape)} and {tuple(k.shape)}", where()))
    return _sdpa(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def flex_attention(q, k, v, block_mask, enable_gqa):
    assert q.shape[2] == k.shape[2] == block_mask.seq_lengths[0] == block_mask.seq_lengths[1]
    return fused_attention(q, k, v, enable_gqa=enable_gqa)


F.scaled_dot_product_attention = fused_attention
ctf.models.attention._compiled_flex_attention = lambda: flex_attention

# --- the host ---


class Host(TorchDispatchMode):
    """Gives zeros where the host reads a value, and notes what it would wait for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "prim":  # asks for the device
            return function(*args, **kwargs)
        if torch.is_inference_mode_enabled() and function._can_decompose():  # outside of it that is done before
            with self:
                return function.decompose(*args, **kwargs)
        reads = function in (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default)
        result = self._value(function, args[0]) if reads else function(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if any(x.device.type == "cuda" for x in tensors) and (found := what_waits(function, args, kwargs, result)):
            WAITS.append((found, where()))
        if function.namespace == "c10d" and tensors:
            COLLECTIVES.append((function.overloadpacket.__name__, tensors[0].dtype, tensors[0].numel()))
        return result

    @staticmethod
    def _value(function, x):
        if function is aten.equal.default:
            return True
        return 0.0 if x.dtype.is_floating_point else False if x.dtype == torch.bool else 0
