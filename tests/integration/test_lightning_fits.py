"""A second `fit()` masks the weights of the first optimizer, which Lightning keeps."""

import pytest
import torch

from tests.support.processes import finish, start

pytest.importorskip("lightning")


def test_fits_equal_two_plain_loops_with_detach_between(tmp_path):
    finish([start("tests.integration.lightning_fits", str(tmp_path))])
    runs = torch.load(tmp_path / "fits.pt")
    for mine, theirs in zip(runs["lightning"], runs["plain"], strict=True):
        assert mine["updates"] == theirs["updates"] == 2
        for what in ("weights", "masks"):
            for name, value in mine[what].items():
                assert torch.equal(value, theirs[what][name]), (what, name)
        for name, mask in mine["masks"].items():
            assert not mine["weights"][name][~mask].any()
