import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import RandomResizedCrop

from benchmarks.cifar.batches import ResizedCrop, Split, channel_statistics, splits_for
from benchmarks.cifar.config import AugmentationConfig, load_preset
from benchmarks.cifar.data import Dataset

COUNT = 50


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)


def identity_split(images, augmentation=None):
    """A split whose labels are the images' numbers and whose normalisation is to [0, 255]."""
    return Split(
        torch.from_numpy(images),
        torch.arange(len(images)),
        torch.zeros(3),
        torch.full((3,), 1 / 255),
        torch.device("cpu"),
        channels_last=True,
        augmentation=augmentation,
    )


def epoch(split, seed=0):
    batches = list(split.shuffled(16, torch.Generator().manual_seed(seed)))
    images = torch.cat([images for images, _ in batches]).round().to(torch.uint8)
    labels = torch.cat([labels for _, labels in batches])
    return images.permute(0, 2, 3, 1).numpy(), labels.tolist()


def all_crops(image, padding):
    """Every crop of one image, mirrored or not, by plain slicing."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            crop = padded[row : row + 32, column : column + 32]
            yield (row, column, False), crop.tobytes()
            yield (row, column, True), crop[:, ::-1].tobytes()


def test_every_image_comes_once_and_as_one_of_its_own_crops(images):
    augmented, numbers = epoch(
        identity_split(images, AugmentationConfig(crop_padding=4, flip=True))
    )
    assert sorted(numbers) == list(range(COUNT))
    seen = set()
    for image, number in zip(augmented, numbers, strict=True):
        crops = {pixels: place for place, pixels in all_crops(images[number], 4)}
        seen.add(crops[np.ascontiguousarray(image).tobytes()])
    # 50 images at 162 places: the same place for all would be no augmentation.
    assert len(seen) > 30
    assert {mirrored for _, _, mirrored in seen} == {True, False}


def test_images_are_not_mirrored_without_mirroring(images):
    augmented, numbers = epoch(
        identity_split(images, AugmentationConfig(crop_padding=2, flip=False))
    )
    for image, number in zip(augmented, numbers, strict=True):
        crops = {pixels: place for place, pixels in all_crops(images[number], 2)}
        assert crops[np.ascontiguousarray(image).tobytes()][2] is False


def test_generator_decides_order_and_crops(images):
    split = identity_split(images, AugmentationConfig(crop_padding=4, flip=True))
    first, second, other = epoch(split, 0), epoch(split, 0), epoch(split, 1)
    assert first[1] == second[1]
    np.testing.assert_array_equal(first[0], second[0])
    assert other[1] != first[1]


def test_resized_crops_are_what_interpolating_the_crop_gives(images):
    tensor = torch.from_numpy(images)
    crop = ResizedCrop(tensor, 0.08)
    drawn = crop.draw(COUNT, torch.Generator().manual_seed(0))
    taken = crop.take(torch.arange(COUNT), drawn)
    for number, place in enumerate(zip(*(values.tolist() for values in drawn), strict=True)):
        row, column, height, width = place
        part = tensor[number, row : row + height, column : column + width].permute(2, 0, 1)[None]
        expected = F.interpolate(part.float(), (32, 32), mode="bilinear", align_corners=False)
        torch.testing.assert_close(taken[number : number + 1], expected, atol=0.01, rtol=0)


def test_resized_crops_are_distributed_as_torchvisions(images):
    crop = ResizedCrop(torch.from_numpy(images), 0.08)
    rows, columns, heights, widths = crop.draw(20_000, torch.Generator().manual_seed(0))
    assert int(heights.max()) == int(widths.max()) == 32
    assert int((rows + heights).max()) == int((columns + widths).max()) == 32
    assert int(rows.min()) == int(columns.min()) == 0
    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32)
    boxes = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(5000)]
    theirs = np.array([height * width for _, _, height, width in boxes]) / 1024
    ours = (heights * widths).numpy() / 1024
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(ours, share) == pytest.approx(np.quantile(theirs, share), abs=0.02)
    corners = np.array([top for top, _, _, _ in boxes])
    assert rows.float().mean().item() == pytest.approx(corners.mean(), abs=0.4)
    shapes = np.array([width / height for _, _, height, width in boxes])
    assert (widths / heights).mean().item() == pytest.approx(shapes.mean(), abs=0.01)


def test_images_in_order_are_the_images(images):
    batches = list(identity_split(images).in_order(16))
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    whole = torch.cat([batch for batch, _ in batches]).round().to(torch.uint8)
    np.testing.assert_array_equal(whole.permute(0, 2, 3, 1).numpy(), images)


def test_validation_and_test_images_are_never_augmented(images):
    labels = np.arange(COUNT)
    dataset = Dataset(images, labels, images[:7], labels[:7])
    protocol = load_preset("cpu", ["training.channels_last=false"])
    train, validation, test = splits_for(protocol, dataset, torch.device("cpu"))
    assert (len(train), len(validation), len(test)) == (45, 5, 7)
    assert validation.labels.tolist() == [45, 46, 47, 48, 49]
    with pytest.raises(ValueError, match="augmented split has no plain batches"):
        next(train.in_order(4))
    # Normalised with the statistics of the training part, without augmentation.
    part = images[:45].reshape(-1, 3) / 255.0
    expected = (images[45:] / 255.0 - part.mean(0)) / part.std(0)
    (batch, _), *rest = validation.in_order(5)
    assert rest == []
    np.testing.assert_allclose(batch.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_statistics_are_those_of_the_pixels(images):
    mean, std = channel_statistics(torch.from_numpy(images))
    flat = images.reshape(-1, 3) / 255.0
    np.testing.assert_allclose(mean.numpy(), flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(std.numpy(), flat.std(0), atol=1e-6)


@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_have_the_memory_format_asked_for(images, channels_last):
    dataset = Dataset(images, np.arange(COUNT), images, np.arange(COUNT))
    protocol = load_preset("cpu", [f"training.channels_last={str(channels_last).lower()}"])
    splits = splits_for(protocol, dataset, torch.device("cpu"))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    images = next(splits[0].shuffled(8, torch.Generator()))[0]
    assert images.shape == (8, 3, 32, 32)
    assert images.is_contiguous(memory_format=memory_format)


def test_fraction_that_leaves_no_validation_is_refused(images):
    dataset = Dataset(images, np.arange(COUNT), images, np.arange(COUNT))
    protocol = load_preset("cpu", ["training.validation_fraction=0.01"])
    with pytest.raises(ValueError, match=r"validation_fraction 0.01 of 50 images leaves 0"):
        splits_for(protocol, dataset, torch.device("cpu"))
