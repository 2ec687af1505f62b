"""
Stopping and resuming
=====================

On this page a second process continues a training run from a file alone. The run ends with the
same bits as an uninterrupted run: the same weights, masks and history of updates.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

# %%
# The script
# ----------
#
# It is an ordinary script that saves after every epoch, and starts from the saved file if there is
# one. Masks, the step counter, the schedule and the method's random state are all in
# ``optimizer.state_dict()``. To continue bit for bit, any run also has to save the scheduler, and
# torch's random state, from which dropout and the order of the images are drawn.
#
# .. literalinclude:: /tutorials/workers/resumable.py
#
# This page starts that file. If you download the page's script, put ``resumable.py`` into a folder
# ``workers`` beside it. A clone of the repository has it there.

SCRIPT = Path(sys.argv[0]).parent / "workers" / "resumable.py"


def run(*arguments: object) -> None:
    """Run the script in a process of its own, and show what it prints."""
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


# %%
# An uninterrupted run
# --------------------

folder = Path(tempfile.mkdtemp())
(folder / "whole").mkdir()
run(folder / "whole")

# %%
# A run in two processes
# ----------------------
#
# The first process ends after two epochs,

(folder / "parts").mkdir()
run(folder / "parts", 2)

# %%
# and the second process is started by the same command as the run above:

run(folder / "parts")

# %%
# The same bits
# -------------
#
# Both files hold the full state of training. The two states are compared bit by bit.

whole, parts = (torch.load(folder / name / "checkpoint.pt") for name in ("whole", "parts"))
assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())
print(f"{len(whole['model'])} tensors of the model are the same")

# %%
# The mask of a weight is saved beside the inner optimizer's state for this weight:

for index, state in whole["optimizer"]["state"].items():
    for key, tensor in state.items():
        assert torch.equal(tensor, parts["optimizer"]["state"][index][key])
print({key: tuple(tensor.shape) for key, tensor in whole["optimizer"]["state"][0].items()})

# %%
# Everything else about masks, including the history, is in one dictionary:

ours, theirs = (one["optimizer"]["param_groups"][0]["sparseopt"] for one in (whole, parts))
assert ours["history"] == theirs["history"]
print(sorted(ours))

# %%
# :doc:`/how-to/checkpoints` says what may change between the two processes, and what a run that may
# be *killed* has to do. :doc:`/reference/checkpoint-format` explains every entry of the file.
