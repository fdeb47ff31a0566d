import pytest
import torch

from ctf.errors import InputError
from ctf.stages.inputs import check_classes


@pytest.mark.parametrize("labels", [[], [[0, 1]], [-1], [6], [0, 6]])
def test_class_labels_out_of_range_or_of_another_shape_are_refused(labels):
    check_classes(torch.tensor([0, 5]), 5)
    with pytest.raises(InputError, match="labels"):
        check_classes(torch.tensor(labels, dtype=torch.int64), 5)
