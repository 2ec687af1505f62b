import shutil
import types

import numpy as np
import pytest
from PIL import Image

from benchmarks.cifar import data
from benchmarks.cifar.data import DataError, load_dataset
from tests.benchmarks.conftest import CIFAR10_NAMES, write_tree


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def decoded(tree, split):
    """The split's images and labels, read here in the simplest way."""
    return [
        (np.asarray(Image.open(path)).tobytes(), label)
        for label, name in enumerate(CIFAR10_NAMES)
        for path in files(tree / split / name)
    ]


def pairs(images, labels):
    return [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]


def test_class_folders_are_decoded_with_their_labels(cifar_tree, tmp_path):
    dataset = load_dataset("cifar10", cifar_tree, tmp_path / "cache")
    train = pairs(dataset.train_images, dataset.train_labels)
    test = pairs(dataset.test_images, dataset.test_labels)
    assert sorted(train) == sorted(decoded(cifar_tree, "train"))
    assert sorted(test) == sorted(decoded(cifar_tree, "test"))
    assert dataset.train_images.shape == (60, 32, 32, 3)
    assert dataset.train_images.dtype == np.uint8
    assert set(dataset.train_labels) == set(range(10))


def test_classes_are_mixed_and_file_names_do_not_matter(cifar_tree, tmp_path):
    first = load_dataset("cifar10", cifar_tree, tmp_path / "cache")
    # Not in the order of the folders, in which the last third would be one class.
    assert len(set(first.train_labels[-20:].tolist())) > 5
    for path in files(cifar_tree):
        path.rename(path.with_name(f"{99 - int(path.stem)}.png"))
    second = load_dataset("cifar10", cifar_tree, tmp_path / "cache")
    assert pairs(second.train_images, second.train_labels) == pairs(
        first.train_images, first.train_labels
    )
    assert first.fingerprint() == second.fingerprint()


def test_torchvisions_files_give_the_same_arrays_as_class_folders(
    cifar_tree, tmp_path, monkeypatch
):
    folders = load_dataset("cifar10", cifar_tree, tmp_path / "cache")

    def cifar10(root, train, download):
        assert not download
        raw = decoded(cifar_tree, "train" if train else "test")
        order = np.random.default_rng(1).permutation(len(raw))
        images = [np.frombuffer(raw[i][0], np.uint8).reshape(32, 32, 3) for i in order]
        return types.SimpleNamespace(data=np.stack(images), targets=[raw[i][1] for i in order])

    monkeypatch.setattr("torchvision.datasets.CIFAR10", cifar10)
    official = tmp_path / "official"
    (official / "cifar-10-batches-py").mkdir(parents=True)
    dataset = load_dataset("cifar10", official, tmp_path / "cache")
    assert dataset.fingerprint() == folders.fingerprint()


def test_second_load_reads_the_cache_and_changed_files_do_not(cifar_tree, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = load_dataset("cifar10", cifar_tree, cache)
    decodings = []
    original = data._read_tree

    def decode(root):
        decodings.append(root)
        return original(root)

    monkeypatch.setattr(data, "_read_tree", decode)
    assert load_dataset("cifar10", cifar_tree, cache).fingerprint() == first.fingerprint()
    assert decodings == []
    shutil.copy(cifar_tree / "train/cat/0.png", cifar_tree / "train/dog/extra.png")
    assert len(load_dataset("cifar10", cifar_tree, cache).train_labels) == 61
    assert decodings == [cifar_tree]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "there is no such folder.*class folders"),
        (lambda tree: shutil.rmtree(tree / "test"), "no folder 'test' in it"),
        (
            lambda tree: [shutil.rmtree(path) for path in tree.iterdir()],
            "no folder 'train' and no folder 'test' in it.*class folders",
        ),
        (lambda tree: shutil.rmtree(tree / "test/dog"), r"differ in the classes \['dog'\]"),
        (lambda tree: shutil.rmtree(tree / "train/dog"), "not the classes of CIFAR-10"),
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
    tree = write_tree(tmp_path / "tree", names, 2, 1)
    dataset = load_dataset("cifar100", tree, tmp_path / "cache")
    assert set(dataset.train_labels) == set(range(100))
    assert sorted(dataset.test_labels.tolist()) == list(range(100))

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
