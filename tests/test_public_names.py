"""Public names have the package as their module, so that pickles outlive a moved file."""

import pickle
import typing

import pytest
import torch

import sparseopt

#: The public names of version 0.1.0.
NAMES_OF_0_1_0 = """
    Accumulated CSRLinear ChannelGroup ChannelSlice CheckpointError CompactedTraining Compaction
    CompactionError CompactionReport Compose Condensation CondensedLinear DropGrow FlopsReport
    GraNet GradientMemory Gradual LayerFlops LayerSizes LayerTimes MEST Method Move NM
    NoSparseLayerError Pruning Redistributing Remaining Rewiring RigL RigLSG RigLSM RigLStruct
    SET SNFS SRigL Smoothed SparseLayer SparseOptimizer Static TrainingCost
    UntraceableModelError Update UpdateRecord UpdateSchedule available_methods balanced_batch
    compact condense final_masks find_channel_groups grasp register_method shuffle_masks snip
    synflow
"""


@pytest.mark.parametrize("name", NAMES_OF_0_1_0.split())
def test_name_of_0_1_0_is_importable(name):
    assert hasattr(sparseopt, name)


@pytest.mark.parametrize("name", sparseopt.__all__)
def test_public_name_has_the_package_as_its_module(name):
    assert getattr(sparseopt, name).__module__ == "sparseopt"


@pytest.mark.parametrize("name", sparseopt.__all__)
def test_type_hints_of_public_name_resolve(name):
    assert isinstance(typing.get_type_hints(getattr(sparseopt, name)), dict)


@pytest.mark.parametrize(
    "value",
    [
        sparseopt.RigL(),
        sparseopt.NM(2, 4),
        sparseopt.UpdateSchedule(delta_t=10, alpha=0.3, t_end=100, decay="cosine"),
        sparseopt.CondensedLinear(torch.eye(3), torch.eye(3) != 0, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pickle_of_public_class_names_no_file_of_the_package(value):
    pickled = pickle.dumps(value)
    assert b"sparseopt" in pickled
    assert b"sparseopt." not in pickled
    assert type(pickle.loads(pickled)) is type(value)
