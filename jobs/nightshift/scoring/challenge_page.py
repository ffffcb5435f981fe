"""A challenger's nights beside the champion, as a part of its model card."""

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment

from nightshift.scoring.comparison import Challenge

NIGHTS_SHOWN = 30


def render(nights: Sequence[Challenge]) -> str:
    """HTML, all values escaped.

    Args:
        nights: at least one, newest first.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = files("nightshift.scoring").joinpath("nights.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        nights=nights[:NIGHTS_SHOWN],
        agreements=[each.comparison.agreement for each in nights],
    )
