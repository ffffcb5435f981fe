"""Errors that a person can act on: what was wrong, where, and what to do next."""


class NightshiftError(Exception):
    """A refusal, not a crash: the CLI and Airflow show it without a traceback.

    Args:
        what: what was wrong, with the value that was found and what was expected.
        remedy: what the reader should do next, as a sentence or a command.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}\n  → {remedy}" if remedy else what)


class SettingError(NightshiftError):
    """A setting that is unknown, missing or malformed; the message names it."""


class RefusedAsOf(NightshiftError):
    """An ``as_of`` that cannot be run: in the future, before any data, or with no champion yet."""


class ContractError(NightshiftError):
    """A landed file or folder that breaks its source's contract as a whole."""


class QualityError(NightshiftError):
    """A failed expectation: the night stops before anything downstream changes."""


class AuditError(NightshiftError):
    """Scores that must not be published; the published ones stay as they are."""


class GateError(NightshiftError):
    """A trained model that failed a gate; the champion stays as it is."""
