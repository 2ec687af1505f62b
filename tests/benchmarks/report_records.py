"""Lines of a results file as the harness writes them, with numbers that a test chooses."""

DENSE_FLOPS = 1000.0
LAYERS = {"stem.weight": 40, "body.weight": 200, "head.weight": 60}
ENVIRONMENT = {
    "sparseopt": "1.2.3",
    "torch": "2.9",
    "numpy": "2",
    "python": "3.10",
    "git_commit": "c0ffee",
    "processor": "CPU",
    "threads": 2,
    "device": "cpu",
}


def protocol(*, reduced=True, dataset="cifar10"):
    """The part of every line that describes its protocol."""
    return {
        "name": "cpu" if reduced else "paper",
        "summary": "reduced a lot",
        "reduced": reduced,
        "label": "REDUCED protocol 'cpu'" if reduced else "paper protocol",
        "description": "WRN-10-2, 10 epochs",
        "settings": {
            "dataset": dataset,
            "training": {"epochs": 10 if reduced else 250},
            "optimizer": {"lr": 0.1},
            "sparsity": {"alpha": 0.3, "delta_t": 100},
        },
    }


def record(method, init, density, seed, accuracy, *, inference=200.0, changed=None, **about):
    """One finished run.

    Args:
        method: As in ``--methods``.
        init: As in ``--inits``, or None.
        density: Share of live weights, or None.
        seed: The seed.
        accuracy: Test accuracy; the validation accuracy is a point lower.
        inference: FLOPs of an inference, of which the dense network's are a thousand.
        changed: What replaces the protocol's ``alpha``, ``delta_t`` or ``lr``.
        about: Arguments of ``protocol``.
    """
    changed = changed or {}
    said = protocol(**about)
    run = {"method": method, "init": init, "density": density, "seed": seed, **changed}
    return {
        "key": f"{sorted(run.items(), key=str)}-{said['name']}",
        "run": run,
        "protocol": said,
        "data": "abc",
        "accuracy": {"test": accuracy, "validation": accuracy - 0.01},
        "flops": {
            "inference": inference,
            "train": 3 * inference,
            "train_measured": 3.3 * inference,
            "dense_inference": DENSE_FLOPS,
            "dense_train": 3 * DENSE_FLOPS,
        },
        "parameters": {"total": 100, "live": 20},
        "updates": None if init is None else {"count": 7, "skipped": 0, "explored": 0.5},
        "density": density or 1.0,
        "seconds": 90.0,
        "steps": 60,
        "environment": ENVIRONMENT,
    }


def with_masks(line, densities, explored=(0.2, 0.3)):
    """The same run with the records of masks that newer runs have.

    Args:
        line: From ``record``.
        densities: Of the three layers.
        explored: Share of weights ever live, after each update.
    """
    layers = [
        {"name": name, "numel": numel, "live": round(density * numel), "ever_live": numel}
        for (name, numel), density in zip(LAYERS.items(), densities, strict=True)
    ]
    history = [
        {
            "step": 100 * number,
            "fraction": 0.3 / number,
            "dropped": 9,
            "grown": 9,
            "new": 0.2 / number,
            "explored": share,
            "density": line["run"]["density"],
            "skipped": False,
        }
        for number, share in enumerate(explored, start=1)
    ]
    return line | {"layers": layers, "history": history}


def timing(line, *, inference, training, threads=2, others=0.0, form=None):
    """The times of a run.

    Args:
        line: From ``record``.
        inference: By batch size, quartiles of the ratio to the dense network's time.
        training: Quartiles of that ratio.
        threads: Of the machine.
        others: Processors that other work kept busy.
        form: What replaces parts of what is said of the network.
    """
    whole = {"kind": "compacted", "parameters": 40, "dense_parameters": 100, "share_reached": 0.9}
    side = {"implementation": "float32", "milliseconds": quartiles(4.0, 5.0, 6.0)}
    return {
        "key": f"{line['key']}-{threads}",
        "run_key": line["key"],
        "environment": {**ENVIRONMENT, "threads": threads},
        "busy_with_others": others,
        "form": {**whole, **(form or {})},
        "inference": [
            {"batch": batch, "own": side, "dense": side, "ratio": quartiles(*ratio)}
            for batch, ratio in inference.items()
        ],
        "training": {
            "batch": 128,
            "own": quartiles(10.0, 11.0, 12.0),
            "update": None if line["updates"] is None else quartiles(20.0, 22.0, 24.0),
            "dense": quartiles(9.0, 10.0, 11.0),
            "updates_a_step": 0.01,
            "ratio": quartiles(*training),
        },
    }


def quartiles(low, median, high):
    """Lines as the benchmark writes them."""
    return {"count": 5, "q1": low, "median": median, "q3": high}
