"""
Stopping and resuming
=====================

At the end of this page a training run has been continued by a process that knew nothing but a
file, and has ended with the same bits as a run that nobody stopped: the same weights, masks and
history of updates.
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
# An ordinary one, which saves after every epoch, and begins with what is saved if there is
# anything. Masks, the step counter, the schedule and the method's random state are all in
# ``optimizer.state_dict()``. What remains is what any run has to save to go on to the bit: the
# scheduler, and torch's own random state, which dropout and the order of the images come from.
#
# .. literalinclude:: /tutorials/workers/resumable.py
#
# This page starts that file. If you download the page's script, put ``resumable.py`` into a folder
# ``workers`` beside it; in a clone of the repository it is there.

SCRIPT = Path(sys.argv[0]).parent / "workers" / "resumable.py"


def run(*arguments: object) -> None:
    """Run the script in a process of its own, and show what it prints."""
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


# %%
# A run that nobody stops
# -----------------------

folder = Path(tempfile.mkdtemp())
(folder / "whole").mkdir()
run(folder / "whole")

# %%
# A run in two processes
# ----------------------
#
# The first one ends after two epochs,

(folder / "parts").mkdir()
run(folder / "parts", 2)

# %%
# and the second one is started by the same command as the run above:

run(folder / "parts")

# %%
# The same bits
# -------------
#
# Both files hold the whole state of training. It is compared bit by bit.

whole, parts = (torch.load(folder / name / "checkpoint.pt") for name in ("whole", "parts"))
assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())
print(f"{len(whole['model'])} tensors of the model are the same")

# %%
# A mask is next to the inner optimizer's own state of the weight:

for index, state in whole["optimizer"]["state"].items():
    for key, tensor in state.items():
        assert torch.equal(tensor, parts["optimizer"]["state"][index][key])
print({key: tuple(tensor.shape) for key, tensor in whole["optimizer"]["state"][0].items()})

# %%
# And everything else about masks is in one dictionary, the history too:

ours, theirs = (one["optimizer"]["param_groups"][0]["sparseopt"] for one in (whole, parts))
assert ours["history"] == theirs["history"]
print(sorted(ours))

# %%
# What may change between the two processes, and what a run that may be *killed* has to do:
# :doc:`/how-to/checkpoints`. What every entry of the file means:
# :doc:`/reference/checkpoint-format`.
