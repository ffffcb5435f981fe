"""What training hands to the gates: a model card, with a place for their verdict."""

ARTIFACT = "card.html"
"""Of a training's MLflow run."""
_BEGIN, _END = "<!-- verdict -->", "<!-- end of verdict -->"


def verdict_place(html: str) -> str:
    """HTML between the marks by which ``with_verdict`` finds it."""
    return f"{_BEGIN}{html}{_END}"


def with_verdict(card: str, html: str) -> str:
    """The card with a verdict in the place of the one that it has.

    Raises:
        ValueError: when the card has no place for one.
    """
    before, begin, rest = card.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError("the card has no place for a verdict")
    return before + verdict_place(html) + after
