"""The reproduction of the report: CIFAR-10 and CIFAR-100 by every method.

A map, in which nothing is used before you have met it:

- What is run: ``settings`` (sections of TOML files), ``methods``, ``grid`` (one run, and products
  of runs), ``config`` (a protocol), ``preset_files``. The presets themselves are in ``presets/``.
- Images and networks: ``data``, ``augmentation``, ``batches``, ``models/``.
- One run: ``optimizers``, ``accounting`` (FLOPs and channels), ``stopping``, ``train``,
  ``records`` (the folder and its results file), ``structure`` (what masks leave on disk).
- Many runs: ``jobs`` (what is left, and what waits for what), ``worker`` (does one), ``pools``
  (three ways to do them all), ``session``, ``search``, ``plan`` (time and bytes).
- Wall time of what runs left: ``forms`` (in which a network is timed), ``timing``.
- The command: ``options``, ``cli``, ``run``.
- ``report/``, from results alone: ``results``, ``stats``, ``paper`` (what ``paper.toml`` says),
  then tables, ``figures`` and ``writing``. ``overview`` is it in short.
"""
