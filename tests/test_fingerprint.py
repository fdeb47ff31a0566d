import hashlib
import struct

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctf.fingerprint import fingerprint, joint_fingerprint

# By their bits, up to those of infinity: `st.floats(width=16)` throws most of its draws away.
halves = st.builds(
    lambda bits, sign: float(np.uint16(bits).view(np.float16)) * sign, st.integers(0, 0x7C00), st.sampled_from([1, -1])
)
floats = st.lists(halves, min_size=1, max_size=8)


@settings(max_examples=50)
@given(floats)
def test_a_fingerprint_depends_on_values_not_on_storage(values):
    tensor = torch.tensor(values)
    twice = torch.stack([tensor, tensor], 1)
    expected = fingerprint(tensor)
    assert len(expected) == 16
    assert int(expected, 16) >= 0
    assert expected == fingerprint(tensor.half()) == fingerprint(tensor.double()) == fingerprint(twice[:, 0])
    assert expected == fingerprint(torch.where(tensor == 0, -tensor, tensor))  # −0 is 0
    assert expected != fingerprint(tensor[None])


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(floats, floats)
def test_other_values_have_another_fingerprint(a, b):
    assert (fingerprint(torch.tensor(a)) == fingerprint(torch.tensor(b))) == (a == b)


@settings(max_examples=50)
@given(st.lists(st.integers(-100, 100), max_size=8))
def test_integers_have_one_fingerprint_in_every_type(values):
    assert fingerprint(torch.tensor(values, dtype=torch.int8)) == fingerprint(torch.tensor(values, dtype=torch.int64))


@settings(max_examples=50)
@given(floats, floats)
def test_a_joint_fingerprint_is_that_of_the_concatenation(a, b):
    a, b = torch.tensor(a), torch.tensor(b)
    assert joint_fingerprint([a.half(), b[None]]) == fingerprint(torch.cat([a, b]))


def test_a_known_fingerprint():
    expected = hashlib.sha256(b"(2, 1)" + struct.pack("<2f", 1.0, 2.5)).hexdigest()[:16]
    assert fingerprint(torch.tensor([[1.0], [2.5]])) == expected
