import shutil
import types

import numpy as np
import pytest
from PIL import Image

from benchmarks.cifar.images import sources
from benchmarks.cifar.images.data import load_dataset
from benchmarks.cifar.images.sources import DataError, recognise
from tests.benchmarks.conftest import write_tree


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def decoded(tree, split):
    """The split's images and labels, read here in the simplest way."""
    return [
        (np.asarray(Image.open(path)).tobytes(), label)
        for label, name in enumerate(("cat", "dog", "eel"))
        for path in files(tree / split / name)
    ]


def pairs(images, labels):
    return [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]


def test_class_folders_are_decoded_with_their_labels(image_tree, tmp_path):
    dataset = load_dataset("folder", image_tree, tmp_path / "cache")
    train = pairs(dataset.train_images, dataset.train_labels)
    test = pairs(dataset.test_images, dataset.test_labels)
    assert sorted(train) == sorted(decoded(image_tree, "train"))
    assert sorted(test) == sorted(decoded(image_tree, "test"))
    assert dataset.train_images.shape == (60, 32, 32, 3)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.num_classes == 3


def test_classes_are_mixed_and_file_names_do_not_matter(image_tree, tmp_path):
    first = load_dataset("folder", image_tree, tmp_path / "cache")
    # Not in the order of the folders, in which the last third would be one class.
    assert len(set(first.train_labels[-20:].tolist())) == 3
    for path in files(image_tree):
        path.rename(path.with_name(f"{99 - int(path.stem)}.png"))
    second = load_dataset("folder", image_tree, tmp_path / "cache")
    assert pairs(second.train_images, second.train_labels) == pairs(
        first.train_images, first.train_labels
    )
    assert first.fingerprint() == second.fingerprint()


def test_torchvisions_files_give_the_same_arrays_as_class_folders(
    image_tree, tmp_path, monkeypatch
):
    folders = load_dataset("folder", image_tree, tmp_path / "cache")

    def cifar10(root, train, download):
        assert not download
        raw = decoded(image_tree, "train" if train else "test")
        order = np.random.default_rng(1).permutation(len(raw))
        images = [np.frombuffer(raw[i][0], np.uint8).reshape(32, 32, 3) for i in order]
        return types.SimpleNamespace(data=np.stack(images), targets=[raw[i][1] for i in order])

    monkeypatch.setattr("torchvision.datasets.CIFAR10", cifar10)
    official = tmp_path / "official"
    (official / "cifar-10-batches-py").mkdir(parents=True)
    dataset = load_dataset("cifar10", official, tmp_path / "cache")
    assert dataset.fingerprint() == folders.fingerprint()


def test_second_load_reads_the_cache_and_changed_files_do_not(image_tree, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = load_dataset("folder", image_tree, cache)
    decodings = []
    original = sources.decode_class_folders

    def decode(folders, *arguments, **options):
        decodings.append(folders)
        return original(folders, *arguments, **options)

    monkeypatch.setattr(sources, "decode_class_folders", decode)
    assert load_dataset("folder", image_tree, cache).fingerprint() == first.fingerprint()
    assert decodings == []
    shutil.copy(image_tree / "train/cat/0.png", image_tree / "train/dog/extra.png")
    assert len(load_dataset("folder", image_tree, cache).train_labels) == 61
    assert decodings == [(image_tree / "train", image_tree / "test")]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "there is no such folder.*class folders"),
        (lambda tree: shutil.rmtree(tree / "test"), "no folder 'test' in it"),
        (lambda tree: shutil.rmtree(tree / "test/dog"), r"differ in the classes \['dog'\]"),
        (lambda tree: shutil.rmtree(tree / "train/dog"), "not those of CIFAR-10"),
        (
            lambda tree: (tree / "test/dog/0.png").write_text("no image"),
            "dog/0.png is not an image",
        ),
        (
            lambda tree: Image.new("RGB", (48, 64)).save(tree / "train/cat/0.png"),
            "cat/0.png is 48x64 pixels.*32x32",
        ),
        (lambda tree: [p.unlink() for p in files(tree / "train/dog")], "dog"),
        (lambda tree: (tree / "cifar-10-batches-py").mkdir(), "damaged or incomplete"),
    ],
)
def test_unusable_data_says_what_to_do_and_writes_nothing(cifar_tree, tmp_path, spoil, message):
    spoil(cifar_tree)
    with pytest.raises(DataError, match=message):
        load_dataset("cifar10", cifar_tree, tmp_path / "out" / "cache")
    assert not (tmp_path / "out").exists()


def test_cifar_may_lie_in_a_folder_of_its_name(cifar_tree, tmp_path):
    plain = load_dataset("cifar10", cifar_tree, tmp_path / "cache")
    (tmp_path / "all").mkdir()
    cifar_tree.rename(tmp_path / "all" / "cifar10")
    named = load_dataset("cifar10", tmp_path / "all", tmp_path / "cache")
    assert named.fingerprint() == plain.fingerprint()
    assert recognise(tmp_path / "all") == {"cifar10"}


def test_own_images_of_any_size_keep_their_middle(tmp_path):
    red, blue = np.zeros((40, 80, 3), np.uint8), np.zeros((40, 80, 3), np.uint8)
    # What is outside the middle square must not be seen.
    red[:, 20:60, 0], red[:, :20, 1] = 200, 255
    blue[:, 20:60, 2], blue[:, 60:, 1] = 100, 255
    for name, pixels in (("red", red), ("blue", blue)):
        folder = tmp_path / "own" / name
        folder.mkdir(parents=True)
        for index in range(10):
            Image.fromarray(pixels + np.uint8(index)).save(folder / f"{index}.png")
    dataset = load_dataset("folder", tmp_path / "own", tmp_path / "cache", image_size=16)
    assert dataset.train_images.shape == (18, 16, 16, 3)
    assert len(dataset.test_labels) == 2
    for image, label in zip(dataset.train_images, dataset.train_labels, strict=True):
        blue_value, red_value = (100, 0) if label == 0 else (0, 200)
        center = image[4:12, 2:14].astype(int)
        assert np.ptp(center, axis=(0, 1)).max() == 0
        assert center[0, 0, 0] - center[0, 0, 1] == red_value
        assert center[0, 0, 2] - center[0, 0, 1] == blue_value


def test_own_images_may_be_one_tree_or_two(image_tree, tmp_path):
    two = load_dataset("folder", image_tree, tmp_path / "cache")
    one = load_dataset("folder", image_tree / "train", tmp_path / "cache")
    assert (len(two.train_labels), len(two.test_labels)) == (60, 15)
    assert (len(one.train_labels), len(one.test_labels)) == (54, 6)
    (image_tree / "test").rename(image_tree / "val")
    renamed = load_dataset("folder", image_tree, tmp_path / "cache")
    assert renamed.fingerprint() == two.fingerprint()


def test_own_images_without_a_folder_are_asked_for(tmp_path, image_tree):
    with pytest.raises(DataError, match="needs --data-dir"):
        load_dataset("folder", None, tmp_path / "cache")
    shutil.rmtree(image_tree / "test")
    with pytest.raises(DataError, match="'train' but none of 'test', 'val'"):
        load_dataset("folder", image_tree, tmp_path / "cache")


def test_images_are_recognised_by_their_classes(image_tree, cifar_tree, tmp_path):
    assert recognise(cifar_tree) == {"cifar10"}
    assert recognise(image_tree) == set()
    (tmp_path / "official" / "cifar-100-python").mkdir(parents=True)
    assert recognise(tmp_path / "official") == {"cifar100"}


def test_failed_download_says_what_to_do_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(root, train, download):
        assert download
        (tmp_path / "out" / "cache").joinpath(root, "half.tar.gz").write_text("half")
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(DataError, match="could not download CIFAR-10: no network.*smoke"):
        load_dataset("cifar10", None, tmp_path / "out" / "cache")
    assert not (tmp_path / "out").exists()


def test_digits_are_enlarged_and_split_with_all_classes_in_each_part():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits", None, None)
    small = {image[::4, ::4, 0].tobytes() for image in dataset.train_images}
    small |= {image[::4, ::4, 0].tobytes() for image in dataset.test_images}
    original = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert small == {image.tobytes() for image in original}
    assert len(dataset.train_labels) + len(dataset.test_labels) == 1797
    assert set(dataset.train_labels[-140:].tolist()) == set(range(10))
    assert set(dataset.test_labels.tolist()) == set(range(10))


def test_cifar100_is_read_from_class_folders_and_from_torchvisions_files(tmp_path, monkeypatch):
    names = ["apple", "aquarium_fish", "willow_tree", "worm"]
    names = sorted([*names, *(f"class{number:02}" for number in range(96))])
    tree = write_tree(tmp_path / "tree", names, 2, 1, size=32)
    dataset = load_dataset("cifar100", tree, tmp_path / "cache")
    assert dataset.num_classes == 100
    assert sorted(dataset.test_labels.tolist()) == list(range(100))
    assert recognise(tree) == {"cifar100"}

    def cifar100(root, train, download):
        images, labels = [], []
        for label, name in enumerate(names):
            for path in files(tree / ("train" if train else "test") / name):
                images.append(np.asarray(Image.open(path)))
                labels.append(label)
        return types.SimpleNamespace(data=np.stack(images), targets=labels)

    monkeypatch.setattr("torchvision.datasets.CIFAR100", cifar100)
    (tmp_path / "official" / "cifar-100-python").mkdir(parents=True)
    official = load_dataset("cifar100", tmp_path / "official", tmp_path / "cache")
    assert official.fingerprint() == dataset.fingerprint()
