import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.files import load_tensors, save_tensors
from ctf.fingerprint import fingerprint

partitions = st.lists(st.integers(0, 9), min_size=1, max_size=60).map(
    lambda labels: torch.tensor([sorted(set(labels)).index(label) for label in labels])
)


def make(labels: torch.Tensor, codebook: torch.Tensor | None = None) -> CoarseMap:
    return CoarseMap(labels, "kmeans", 7, "0" * 16 if codebook is None else fingerprint(codebook))


@given(partitions)
def test_tables_agree_with_a_loop_over_tokens(labels):
    cm = make(labels)
    lists = [[k for k, m in enumerate(labels.tolist()) if m == c] for c in range(int(labels.max()) + 1)]
    assert (cm.num_fine, cm.num_coarse, cm.sizes.tolist()) == (len(labels), len(lists), [len(x) for x in lists])
    assert [cm.members(c).tolist() for c in range(cm.num_coarse)] == lists
    longest = max(map(len, lists))
    assert cm.member_table.tolist() == [tokens + tokens[-1:] * (longest - len(tokens)) for tokens in lists]
    assert cm.index_in_cluster.tolist() == [lists[m].index(k) for k, m in enumerate(labels.tolist())]
    assert torch.equal(cm.to_coarse(cm.member_table), torch.arange(len(lists))[:, None].expand(cm.member_table.shape))


@given(partitions, st.integers(0, 2**32))
def test_swap_takes_another_token_of_the_cluster_and_follows_the_generator(labels, seed):
    cm = make(labels)
    tokens = torch.arange(len(labels)).repeat(3, 1)
    swapped = cm.swap_within_cluster(tokens, torch.Generator().manual_seed(seed))
    assert swapped.dtype == torch.int64
    assert torch.equal(cm.to_coarse(swapped), cm.to_coarse(tokens))
    assert torch.equal(swapped == tokens, (cm.sizes == 1)[cm.to_coarse(tokens)])
    assert torch.equal(swapped, cm.swap_within_cluster(tokens, torch.Generator().manual_seed(seed)))


def test_swap_is_uniform_over_the_other_members():
    cm = make(torch.tensor([0, 1, 0, 0, 1, 0, 0, 2]))
    swapped = cm.swap_within_cluster(torch.full((50_000,), 3), torch.Generator().manual_seed(0))
    counts = swapped.bincount(minlength=8)[[0, 2, 5, 6]].double()
    chi_square = ((counts - 12_500) ** 2 / 12_500).sum()
    assert chi_square < 16.27  # 0.1 % of the distribution with 3 degrees of freedom


@given(partitions)
def test_means_are_those_of_the_members(labels):
    codebook = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([codebook[labels == m].mean(0) for m in range(int(labels.max()) + 1)])
    torch.testing.assert_close(make(labels).means(codebook), expected)


@given(partitions, st.data())
def test_a_coarser_map_is_found_where_clusters_stay_whole(labels, data):
    num_coarse = int(labels.max()) + 1
    drawn = data.draw(st.lists(st.integers(0, 9), min_size=num_coarse, max_size=num_coarse))
    psi = torch.tensor([sorted(set(drawn)).index(label) for label in drawn])
    found = make(labels).coarsened_by(CoarseMap(psi[labels], "random", 3, "0" * 16))
    assert torch.equal(found.fine_to_coarse, psi)
    assert (found.method, found.seed) == ("random", 3)


def test_there_is_no_coarser_map_where_a_cluster_is_cut_or_the_codebook_is_another():
    fine = make(torch.tensor([0, 1, 1, 2]))
    assert fine.coarsened_by(make(torch.tensor([0, 0, 1, 1]))) is None  # tokens 1 and 2 apart
    assert fine.coarsened_by(make(torch.tensor([0, 1, 1, 1, 0]))) is None
    assert fine.coarsened_by(CoarseMap(torch.tensor([0, 1, 1, 1]), "kmeans", 7, "1" * 16)) is None
    assert fine.coarsened_by(make(torch.tensor([0, 1, 1, 1]))) is not None


def test_maps_are_equal_when_they_map_one_codebook_equally():
    labels = torch.tensor([0, 1, 1])
    one = CoarseMap(labels, "kmeans", 0, "a")
    same = CoarseMap(labels.clone().int(), "random", 5, "a")
    others = [CoarseMap(labels, "kmeans", 0, "b"), CoarseMap(torch.tensor([0, 1, 0]), "kmeans", 0, "a")]
    assert one == same
    assert hash(one) == hash(same)
    assert all(one != other for other in others)
    assert len({one, same, *others}) == 3
    assert one != labels.tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_to_coarse_takes_integers_of_any_type_and_shape(dtype):
    cm = make(torch.tensor([1, 0, 1]))
    coarse = cm.to_coarse(torch.tensor([[[0, 1], [2, 2]]]).to(dtype))
    assert coarse.dtype == torch.int64
    assert coarse.tolist() == [[[1, 0], [1, 1]]]
    assert cm.to_coarse(torch.empty(0, 4, dtype=dtype)).shape == (0, 4)


@pytest.mark.parametrize(
    "tokens", [torch.tensor([-1]), torch.tensor([[0, 3]]), torch.tensor([0.0]), torch.tensor([True])]
)
def test_tokens_outside_the_codebook_are_refused(tokens):
    cm = make(torch.tensor([1, 0, 1]))
    with pytest.raises(InputError, match="tokens"):
        cm.to_coarse(tokens)
    with pytest.raises(InputError, match="tokens"):
        cm.swap_within_cluster(tokens, torch.Generator())


@pytest.mark.parametrize("m", [-1, 2])
def test_clusters_outside_the_map_are_refused(m):
    with pytest.raises(InputError, match="clusters 0 … 1"):
        make(torch.tensor([1, 0, 1])).members(m)


@pytest.mark.parametrize("labels", [[0, 2, 0], [-1, 0, 1], [1, 1], [0, 10**12], [0.0, 1.0], [[0, 1]], []])
def test_labels_that_are_no_partition_are_refused(labels):
    with pytest.raises(InputError, match="coarse map"):
        make(torch.tensor(labels))


@pytest.mark.parametrize("num_coarse", [2, 200, 40_000])
def test_save_and_load_give_the_same_map(tmp_path, num_coarse):
    labels = torch.arange(num_coarse + 3) % num_coarse
    codebook = torch.randn(len(labels), 4)
    make(labels, codebook).save(tmp_path / "map.safetensors")
    loaded = CoarseMap.load(tmp_path / "map.safetensors", codebook)
    assert torch.equal(loaded.fine_to_coarse, labels)
    assert (loaded.method, loaded.seed, loaded.codebook_fingerprint) == ("kmeans", 7, fingerprint(codebook))


def test_another_codebook_is_refused(tmp_path):
    codebook = torch.randn(4, 2)
    path = tmp_path / "map.safetensors"
    make(torch.tensor([0, 1, 0, 1]), codebook).save(path)
    with pytest.raises(InputError, match=r"another codebook.*ctf cluster"):
        CoarseMap.load(path, codebook.flip(0))
    with pytest.raises(InputError, match=r"4 codewords.*has 3"):
        CoarseMap.load(path, codebook[:3])
    CoarseMap.load(path, codebook.double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "2"}, "format 2"),
        ({"seed": "x"}, "seed|invalid"),
        ({"num_coarse": "3"}, "K and M"),
        ({"method": None}, "KeyError: 'method'"),
    ],
)
def test_wrong_metadata_is_refused(tmp_path, change, message):
    path = tmp_path / "map.safetensors"
    make(torch.tensor([0, 1, 0, 1])).save(path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {key: value for key, value in (metadata | change).items() if value is not None})
    with pytest.raises(InputError, match=message):
        CoarseMap.load(path)
