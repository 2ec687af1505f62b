"""From options to protocols: which of a preset's, changed how, and on which images."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cifar.images.sources import OWN, check_folder, recognise
from benchmarks.cifar.protocols.choices import MAIN, SEARCH, Choices, Study
from benchmarks.cifar.protocols.presets import Change, load_protocols
from benchmarks.cifar.protocols.protocol import Protocol
from benchmarks.cifar.protocols.tables import ProtocolError

NARROWING = ("methods", "inits", "densities", "seeds")


def choose_protocols(preset: str, options: argparse.Namespace) -> list[Protocol]:
    """The protocols to run, with all changes that the command line makes.

    Raises:
        ProtocolError: If one or a setting is not known.
        DataError: If there is no such folder as ``--data-dir``.
    """
    changes = list(options.set)
    if options.model is not None:
        changes.append(Change(None, ("model", "kind"), options.model))
    protocols = list(load_protocols(preset, changes))
    if options.protocols is not None:
        protocols = _among(preset, protocols, options.protocols)
    if options.data_dir is not None:
        # The digits need no folder, but must not stand in for one that was mistyped.
        check_folder(options.data_dir, protocols[0].dataset)
        protocols = fit_to_images(protocols, options.data_dir)
    return [_narrowed(protocol, options) for protocol in protocols]


def fit_to_images(protocols: Sequence[Protocol], data_dir: Path) -> list[Protocol]:
    """The protocols for the images that are in a folder.

    Images that are neither CIFAR-10 nor CIFAR-100 are the user's own, and results must not pass
    for those of a CIFAR. A CIFAR takes the place of the digits.
    """
    found = recognise(data_dir)
    if not found:
        return [_on(protocol, OWN) for protocol in protocols]
    return [
        _on(protocol, min(found)) if protocol.dataset in ("digits", OWN) else protocol
        for protocol in protocols
    ]


def parts_of(protocols: Sequence[Protocol], options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Which parts of each protocol are to be done.

    A search is left out if it is of a method that is not among those given.

    Raises:
        ProtocolError: If no protocol has a part that was asked for, or if nothing is left to do.
    """
    if options.studies is None:
        if options.all or not is_narrowed(options):
            return [_without_other_searches(p, p.choices.parts, options) for p in protocols]
        return [(MAIN,) for _ in protocols]
    known = list(dict.fromkeys(part for p in protocols for part in p.choices.parts))
    for name in options.studies:
        if name not in known:
            raise ProtocolError(f"--studies takes of {', '.join(known)}, got {name!r}")
    asked = [tuple(p for p in q.choices.parts if p in options.studies) for q in protocols]
    parts = [
        _without_other_searches(protocol, names, options)
        for protocol, names in zip(protocols, asked, strict=True)
    ]
    if any(asked) and not any(parts):
        raise ProtocolError(
            f"--studies {SEARCH} is a search for a method that is not among --methods "
            f"{' '.join(options.methods)}"
        )
    return parts


def _without_other_searches(
    protocol: Protocol, parts: Sequence[str], options: argparse.Namespace
) -> tuple[str, ...]:
    search = protocol.choices.search
    if search is None or not options.methods or search.method in options.methods:
        return tuple(parts)
    return tuple(part for part in parts if part != SEARCH)


def is_narrowed(options: argparse.Namespace) -> bool:
    """Whether methods, inits, densities or seeds are given."""
    return any(getattr(options, name) for name in NARROWING)


def _narrowed(protocol: Protocol, options: argparse.Namespace) -> Protocol:
    given = {
        name: tuple(dict.fromkeys(getattr(options, name)))
        for name in NARROWING
        if getattr(options, name)
    }
    choices: Choices = dataclasses.replace(protocol.choices, **given)
    studies = tuple(
        dataclasses.replace(study, **{**given, "methods": _methods_of(study, options)})
        for study in choices.studies
    )
    search = choices.search
    if search is not None:
        listed = {name: values for name, values in given.items() if name != "methods"}
        search = dataclasses.replace(search, **listed)
    choices = dataclasses.replace(choices, studies=studies, search=search)
    return dataclasses.replace(protocol, choices=choices)


def _methods_of(study: Study, options: argparse.Namespace) -> tuple[str, ...]:
    given = tuple(dict.fromkeys(options.methods or study.methods))
    if options.studies is not None:
        return given
    # With --all, a study is not to grow by methods that have nothing to do with it.
    return tuple(method for method in given if method in study.methods)


def _among(preset: str, protocols: Sequence[Protocol], names: Sequence[str]) -> list[Protocol]:
    # A changed protocol is still called by its file's name.
    by_name = {protocol.name.split(" with ")[0]: protocol for protocol in protocols}
    for name in names:
        if name not in by_name:
            raise ProtocolError(
                f"--protocols: {preset} has {', '.join(map(repr, by_name))}, got {name!r}"
            )
    return [by_name[name] for name in dict.fromkeys(names)]


def _on(protocol: Protocol, dataset: str) -> Protocol:
    where = "own images" if dataset == OWN else dataset
    return dataclasses.replace(
        protocol,
        name=f"{protocol.name} on {where}",
        summary=f"{protocol.summary}; on {where} instead of {protocol.dataset}",
        reduced=True,
        dataset=dataset,
    )
