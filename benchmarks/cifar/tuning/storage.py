"""Where Optuna keeps a search: a file of one machine, or a database that many machines share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.cifar.protocols.tables import ProtocolError
from benchmarks.common.files import claimed, plain_name

FILES = "search"
HEARTBEAT_SECONDS = 60
# A machine that has not been heard of for so long is taken for dead, and its trial is done again.
GRACE_SECONDS = 300
RETRIES = 3


@dataclass(frozen=True)
class Storage:
    """Opens studies.

    With a file, one process at a time works on a study, so a trial that is found running is that of
    a process that was killed. With a database, processes say every minute that they are alive.

    Args:
        folder: Each study has a file of its own in ``search/`` there, if no database is given.
        url: A database as SQLAlchemy names it, such as ``"postgresql://user@host/name"``.
    """

    folder: Path
    url: str | None = None

    @property
    def is_shared(self) -> bool:
        """Whether several processes may work on one study."""
        return self.url is not None

    def open(self, name: str) -> optuna.Study:
        """A study that maximises, new or as it was left.

        In a file, trials that killed processes left are failed: nobody is working on them. To be
        called by who has the ``claim``.
        """
        with quiet():
            study = optuna.create_study(
                study_name=name,
                storage=self._database() if self.is_shared else self._file(name),
                direction="maximize",
                load_if_exists=True,
            )
            if not self.is_shared:
                for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    study.tell(trial.number, state=TrialState.FAIL)
        return study

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process may work on a study now; the claim ends with the process.

        Args:
            name: The study.
        """
        if self.is_shared:
            yield True
            return
        with claimed(self._path(name, "lock")) as mine:
            yield mine

    def _file(self, name: str) -> RDBStorage:
        return RDBStorage(f"sqlite:///{self._path(name, 'db').as_posix()}")

    def _path(self, name: str, ending: str) -> Path:
        files = self.folder / FILES
        files.mkdir(parents=True, exist_ok=True)
        return files / f"{plain_name(name)}.{ending}"

    def _database(self) -> RDBStorage:
        assert self.url is not None
        return RDBStorage(
            self.url,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )


def check_database(url: str, *, connect: bool) -> None:
    """See that a search could be kept in a database, before hours of training.

    Args:
        url: As SQLAlchemy names it.
        connect: Whether to see also that it answers.

    Raises:
        ProtocolError: If it can't.
    """
    shown = url
    try:
        # A password is not to be seen.
        shown = make_url(url).render_as_string(hide_password=True)
        engine = create_engine(url)
        if connect:
            with engine.connect():
                pass
        engine.dispose()
    except (SQLAlchemyError, ImportError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ProtocolError(
            f"--storage {shown}: {why}; it takes a database as SQLAlchemy names it, such as "
            "postgresql://user@host/name, whose driver is installed"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's own log, and without its warnings that something may change one day."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
