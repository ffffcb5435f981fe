from collections import Counter
from itertools import islice

from chaos.__main__ import COMMANDS, DISTURBANCES, deal


def test_every_command_and_disturbance_comes_before_any_comes_much_more_often() -> None:
    rounds = list(islice(deal(11, list(COMMANDS)), 70))
    commands = Counter(command.name for command, _ in rounds)
    assert commands == {c.name: 10 * c.weight for c in COMMANDS}
    done = Counter(disturb for _, chosen in rounds for disturb in chosen)
    assert done.keys() == DISTURBANCES.keys()
    assert max(done.values()) - min(done.values()) <= 3
    assert all(DISTURBANCES[disturb](command) for command, chosen in rounds for disturb in chosen)


def test_a_round_is_the_same_again() -> None:
    one, other = (list(islice(deal(7, list(COMMANDS)), 5)) for _ in range(2))
    assert one == other != list(islice(deal(8, list(COMMANDS)), 5))


def test_what_suits_no_command_is_not_waited_for() -> None:
    train = [command for command in COMMANDS if command.name == "train"]
    rounds = list(islice(deal(7, train), 10))
    assert all(DISTURBANCES[disturb](train[0]) for _, chosen in rounds for disturb in chosen)
