"""What training hands to gates and nights: a model card, with places for what they find."""

ARTIFACT = "card.html"
"""Of a training's MLflow run."""
VERDICT, NIGHTS = "verdict", "nights beside the champion"
"""The places."""


def place(name: str, html: str) -> str:
    """HTML between the marks by which ``with_place`` finds it."""
    return f"<!-- {name} -->{html}<!-- end of {name} -->"


def with_place(card: str, name: str, html: str) -> str:
    """The card with other HTML in a place of it.

    Raises:
        ValueError: when the card has no such place.
    """
    before, begin, rest = card.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not (begin and end):
        raise ValueError(f"the card has no place for the {name}")
    return before + place(name, html) + after
