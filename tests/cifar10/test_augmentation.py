import torch

from cifar10.augmentation import crop_and_flip, cutout, draw_epoch


def images(count: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_each_image_is_a_shifted_flipped_view_of_its_reflect_padded_self() -> None:
    data, draws, crop = images(), draw_epoch(0, 3, 40, crop=4, flip=True), 4
    indices = torch.randperm(40)[:25]
    batch = crop_and_flip(data, indices, draws)
    padded = torch.nn.functional.pad(data.permute(0, 3, 1, 2).float(), [crop] * 4, mode="reflect").permute(0, 2, 3, 1)
    for image, i in zip(batch, indices.tolist(), strict=True):
        top, left = crop + int(draws.rows[i]), crop + int(draws.columns[i])
        expected = padded[i, top : top + 32, left : left + 32]
        assert torch.equal(image.float(), expected.flip(1) if draws.flipped[i] else expected)


def test_all_shifts_and_both_mirrors_occur() -> None:
    draws = draw_epoch(0, 0, 5000, crop=2, flip=True)
    assert draws.rows.unique().tolist() == draws.columns.unique().tolist() == [-2, -1, 0, 1, 2]
    assert 0.45 < draws.flipped.float().mean() < 0.55


def test_the_plan_is_a_function_of_seed_and_epoch() -> None:
    def rows(seed: int, epoch: int) -> list[int]:
        return draw_epoch(seed, epoch, 1000, crop=2, flip=True).rows.tolist()

    assert rows(1, 2) == rows(1, 2) not in (rows(1, 3), rows(2, 2))


def test_what_happens_to_an_image_does_not_depend_on_its_batch() -> None:
    data, draws = images(), draw_epoch(0, 0, 40, crop=2, flip=True)
    whole = crop_and_flip(data, torch.arange(40), draws)
    assert torch.equal(whole[[7, 3]], crop_and_flip(data, torch.tensor([7, 3]), draws))


def test_cutout_erases_the_planned_square_and_nothing_else() -> None:
    draws = draw_epoch(0, 0, 40, crop=0, flip=False)
    batch = cutout(torch.ones(40, 3, 32, 32), torch.arange(40), draws, size=8)
    for i in range(40):
        expected = torch.ones(3, 32, 32)
        top, left = int(draws.hole_rows[i]) - 4, int(draws.hole_columns[i]) - 4
        expected[:, max(top, 0) : top + 8, max(left, 0) : left + 8] = 0
        assert torch.equal(batch[i], expected)


def versions(count: int, corrupted: float, epoch: int = 0, seed: int = 0) -> torch.Tensor:
    return draw_epoch(seed, epoch, count, crop=2, flip=True, corrupted=corrupted).versions


def test_a_share_of_the_images_is_corrupted_others_in_each_epoch() -> None:
    first, second = versions(10_000, 0.25), versions(10_000, 0.25, epoch=1)
    assert 0.23 < (first > 0).float().mean() < 0.27 and 0.23 < (second > 0).float().mean() < 0.27
    assert 0.05 < ((first > 0) & (second > 0)).float().mean() < 0.075  # as independent draws
    assert torch.equal(first, versions(10_000, 0.25)) and not torch.equal(first, versions(10_000, 0.25, seed=1))
    assert set(versions(1000, 0).tolist()) == {0} and 0 not in versions(1000, 1)


def test_corruption_changes_no_other_draw() -> None:
    one, other = (draw_epoch(0, 3, 50, crop=2, flip=True, corrupted=share) for share in (0, 0.5))
    for name in ("rows", "columns", "flipped", "hole_rows", "hole_columns"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_a_corrupted_version_is_shifted_and_flipped_as_its_image() -> None:
    draws, indices = draw_epoch(0, 0, 40, crop=2, flip=True, corrupted=0.5), torch.randperm(40)[:25]
    inverted = 255 - images()
    batch = crop_and_flip(images(), indices, draws, [inverted])
    for number, i in enumerate(indices):
        source = inverted if draws.versions[i] else images()
        assert torch.equal(batch[number], crop_and_flip(source, i[None], draws)[0])
    assert 0 < (draws.versions[indices] > 0).sum() < 25
