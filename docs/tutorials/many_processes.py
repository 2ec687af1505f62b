"""
DDP and FSDP2
=============

On this page two processes train one network together in two ways: with a copy of the network in
each process (DistributedDataParallel), and with half of every weight in each process (FSDP2).
Sparse training adds only the wrapper to either script.

This page shows and starts two other scripts. If you download this page's script, put them into a
folder ``workers`` beside it, as ``data_parallel.py`` and ``sharded.py``. A clone of the repository
has them there.
"""

import os
import subprocess
import sys
from pathlib import Path

WORKERS = Path(sys.argv[0]).parent / "workers"


def torchrun(script: str) -> None:
    """Start two ranks, and show what they print; on the command line this is ``torchrun``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, WORKERS / script],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout)


# %%
# DistributedDataParallel
# -----------------------
#
# Each rank has a random state of its own, on purpose. DDP gives all ranks the weights of rank 0,
# and the wrapper gives them the masks of rank 0. Gradients are averaged over the ranks before masks
# move, so all ranks make the same updates. The last lines of the script check this.
#
# .. literalinclude:: /tutorials/workers/data_parallel.py

torchrun("data_parallel.py")

# %%
# FSDP2
# -----
#
# Shard first, then make the optimizer, then wrap. A sharded weight is still one layer: drop and
# grow choose among all its entries.
#
# .. literalinclude:: /tutorials/workers/sharded.py

torchrun("sharded.py")

# %%
# The live weights of a layer need not be spread evenly over the ranks. Their number is exactly the
# same as in one process. Each rank keeps its part of the mask, one byte per weight.
#
# Next: :doc:`/how-to/distributed` says how much communication each way needs, and how another
# number of ranks can load a checkpoint.
