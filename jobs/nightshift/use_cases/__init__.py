"""The registry of use cases: explicit, and the one place from which DAGs and tables derive.

Each import below is one; a line more lists one more.
"""

from nightshift.errors import NightshiftError
from nightshift.spec import UseCase
from nightshift.use_cases.churn import CHURN as CHURN
from nightshift.use_cases.fraud import FRAUD as FRAUD
from nightshift.use_cases.recommendations import RECOMMENDATIONS as RECOMMENDATIONS
from nightshift.use_cases.spend import SPEND as SPEND

USE_CASES: tuple[UseCase, ...] = tuple(
    imported for imported in list(globals().values()) if isinstance(imported, UseCase)
)


def find_use_case(name: str) -> UseCase:
    """The use case of that name.

    Raises:
        NightshiftError: when there is none; the message lists those that exist.
    """
    for use_case in USE_CASES:
        if use_case.name == name:
            return use_case
    raise NightshiftError(
        f"there is no use case {name!r}; there are: {', '.join(u.name for u in USE_CASES)}",
        "list it in jobs/nightshift/use_cases/__init__.py",
    )
