"""Searches for parameters that a kill cannot lose: Optuna's studies in the warehouse."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from nightshift.io.warehouse import CONNECT_SECONDS, holding, migrate
from nightshift.settings import Settings

if TYPE_CHECKING:
    from optuna import Study

SCHEMA = "studies"


@contextmanager
def opened(
    settings: Settings, name: str, direction: Literal["minimize", "maximize"]
) -> Iterator["Study"]:
    """The study of that name, made if there is none, for one process at a time.

    A trial that was running has died with its process, and is marked as failed.

    Raises:
        SettingError: when the warehouse does not answer.
    """
    import optuna
    from optuna.trial import TrialState
    from sqlalchemy.pool import NullPool

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    migrate(settings)
    with holding(settings, exclusive=[f"study:{name}"]):
        # Optuna makes its tables when they are missing: not twice at once.
        with holding(settings, exclusive=[SCHEMA]):
            storage = optuna.storages.RDBStorage(
                settings.warehouse_url.replace("postgres://", "postgresql://", 1).replace(
                    "postgresql://", "postgresql+psycopg2://", 1
                ),
                engine_kwargs={
                    "poolclass": NullPool,
                    "connect_args": {
                        "options": f"-csearch_path={SCHEMA}",
                        "connect_timeout": CONNECT_SECONDS,
                        "application_name": "nightshift",
                    },
                },
            )
        try:
            study = optuna.create_study(
                storage=storage, study_name=name, direction=direction, load_if_exists=True
            )
            for trial in study.get_trials(states=(TrialState.RUNNING,)):
                study.tell(trial.number, state=TrialState.FAIL)
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()
