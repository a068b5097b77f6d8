"""What holds for any input, tried on many made-up ones."""

import torch
from hypothesis import given
from hypothesis import strategies as st

import train as main_program
from cifar10.augmentation import crop_and_flip, draw_epoch
from cifar_datamodule import stratified_split
from core.errors import UsageError
from training.config import SETTINGS, RunConfig, read_config

seeds = st.integers(0, 2**32 - 1)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=300), st.integers(0, 10), seeds)
def test_a_split_is_disjoint_complete_and_equal_over_the_classes(labels: list[int], each: int, seed: int) -> None:
    tensor = torch.tensor(labels)
    train, val = stratified_split(tensor, 10 * each, seed)
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels)))
    for label in range(10):
        assert (tensor[val] == label).sum() == min(each, labels.count(label))


@given(seeds, st.integers(0, 10_000), st.integers(0, 31), st.booleans(), st.floats(0, 1), st.integers(1, 100))
def test_a_plan_stays_in_range_and_every_pixel_comes_from_its_image(
    seed: int, epoch: int, crop: int, flip: bool, corrupted: float, versions: int
) -> None:
    draws = draw_epoch(seed, epoch, 6, crop, flip, corrupted, versions)
    assert 0 <= draws.versions.min() <= draws.versions.max() <= (versions if corrupted else 0)
    assert max(draws.rows.abs().max(), draws.columns.abs().max()) <= crop
    assert flip or not draws.flipped.any()
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 32, 32, 3).contiguous()
    indices = torch.tensor([3, 0, 5])
    batch = crop_and_flip(images, indices, draws)
    assert torch.equal(batch, indices.to(torch.uint8)[:, None, None, None].expand_as(batch))


words = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12),
    st.sampled_from(["", "null", "[1,2]", "{", "-1", "1" * 400, "0." + "9" * 400]),
)


parser = main_program.make_parser()


@given(name=st.sampled_from(sorted(SETTINGS)), value=words)
def test_any_value_of_any_flag_is_taken_or_refused_in_a_line(name: str, value: str) -> None:
    try:
        flags = vars(parser.parse_args([f"--{name}={value}"]))
        config = RunConfig(**{name: flags[name]})
    except UsageError as refused:
        assert name in str(refused) and len(str(refused)) < 400
        return
    assert read_config(config.plain()) == config
