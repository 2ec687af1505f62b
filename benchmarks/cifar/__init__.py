"""The reproduction of the report: CIFAR-10 and CIFAR-100 by every method.

A map, in which nothing is used before you have met it:

- ``files`` (whole files or none) and ``environment`` (versions and hardware) serve every benchmark.
- ``protocols/``, what is run: ``methods``, ``runspec`` (one run, and the name of its result),
  ``tables`` (TOML), ``choices`` (what a preset runs), ``protocol``, ``presets``. The presets
  themselves are in ``presets/``.
- ``images/``: ``sources`` (where images come from), ``data``, ``augmentation``, ``batches``.
- ``models/``: ``wide_resnet``, ``resnet``, ``networks`` (the one that a protocol names).
- ``running/``, one run: ``channels``, ``building`` (optimizer and learning rate), ``checkpoint``,
  ``stopping``, ``ranks`` (several devices), ``training``, ``accounting``, ``matching`` (densities
  of equal cost).
- ``records/``, its traces: ``results``, ``masks``, ``structure`` (what a structured method left),
  ``folder``, ``tensorboard``.
- ``scheduling/``, many runs: ``jobs`` (what is left and what waits for what), ``worker`` (does
  one), ``planning`` (time and bytes), ``durations``, ``display``; then ``serial``, ``pool`` and
  ``cluster``, three ways to do them all.
- ``timing/``, wall time of what runs left: ``forms`` (in which a network is timed), ``inference``,
  ``training``, ``others`` (who took the machine meanwhile), ``session``.
- The command: ``session``, ``options``, ``selecting``, ``cli``, ``run``; ``tuning/`` searches by
  more runs.
- ``report/``, from results alone: ``summary``, ``times``, ``paper`` (what ``paper.toml`` says),
  then tables and ``figures/``.
"""
