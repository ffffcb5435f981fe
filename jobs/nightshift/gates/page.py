"""The verdict of the gates as a part of the model card."""

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment

from nightshift.gates.rules import GateResult

SAID = {
    "promoted": "passed, and promoted to champion",
    "refused": "refused, the champion stays",
    "proposed": "passed, waits for a person to approve",
    "challenger": "passed in a dry run, the champion stays",
    "unchanged": "passed, and was decided on before",
}
"""By outcome of a judgement."""


def render(
    use_case: str,
    version: str,
    run_id: str,
    champion: str | None,
    outcome: str,
    results: Sequence[GateResult],
) -> str:
    """HTML, all values escaped.

    Args:
        champion: the version that was champion when this one was judged; None before the first.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = files("nightshift.gates").joinpath("verdict.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        use_case=use_case,
        version=version,
        run_id=run_id,
        champion=champion,
        outcome=outcome,
        said=SAID[outcome],
        results=results,
        failed=[each for each in results if not each.passed],
    )
