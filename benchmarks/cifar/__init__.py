"""The reproduction of the report: CIFAR-10 and CIFAR-100 by every method.

The modules, in an order in which each uses only earlier ones:

- The choice of runs: ``settings`` (sections of TOML files), ``variants`` (methods for studies),
  ``methods``, ``grid`` (one run, and products of runs), ``config`` (a protocol and its file in
  ``presets/``).
- One run: ``data``, ``batches``, ``models``, ``accounting`` (FLOPs and channels), ``train``,
  ``records`` (the folder and its results file), ``structure`` (a network's structure on disk).
- Many runs: ``plan`` (unfinished runs and their dependencies), ``worker`` (executes one run),
  ``pools`` (three ways to execute all), ``search``, ``timing`` (wall time of trained networks).
- The command: ``options``, ``cli``, ``run``.
- ``report/``, which reads only the results; ``overview`` is a short form of it, ``by_length`` one
  of its tables.
"""
