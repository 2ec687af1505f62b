"""The reproduction of the report: CIFAR-10 and CIFAR-100 by every method.

A map, in which nothing is used before you have met it:

- What is run: ``settings`` (sections of TOML files), ``methods``, ``grid`` (one run, and products
  of runs), ``config`` (a protocol and its file in ``presets/``).
- One run: ``data``, ``batches``, ``models``, ``accounting`` (FLOPs and channels), ``train``,
  ``records`` (the folder and its results file), ``structure`` (what masks leave on disk).
- Many runs: ``plan`` (what is left, and what waits for what), ``worker`` (does one), ``pools``
  (three ways to do them all), ``search``, ``timing`` (wall time of what runs left).
- The command: ``options``, ``cli``, ``run``.
- ``report/``, from results alone; ``overview`` is it in short.
"""
