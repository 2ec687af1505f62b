"""The reproduction of the report: CIFAR-10 and CIFAR-100 by every method.

A map, in which nothing is used before you have met it:

- What is run: ``methods``, ``runspec`` (one run, and the name of its result), ``tables`` (TOML),
  ``choices`` (what a preset runs), ``protocol``, ``presets``.
- Data: ``files``, ``sources`` (where images come from), ``data``, ``augmentation``, ``batches``.
- One run: ``models``, ``resnet``, ``networks``, ``building`` (optimizer and learning rate),
  ``checkpoint``, ``stopping``, ``ranks`` (several devices), ``training``, ``accounting``.
- Its traces: ``results``, ``masks``, ``folder``, ``environment``, ``tensorboard``.
- Many runs: ``jobs`` (what is left and what waits for what), ``worker`` (does one), ``durations``,
  ``display``; then ``serial``, ``pool`` and ``cluster``, three ways to do them all.
- A session: ``matching``, ``planning`` (time and bytes), ``session``, ``options``, ``selecting``,
  ``cli``; ``tuning`` searches by more runs.
- From results alone: ``paper``, ``summary``, ``report``.
"""
