"""``make chaos``: commands disturbed at random, a reader that polls all the while, and what holds
after each.

A base world is made once: a small shop, a trained model of each use case and a second one of churn,
four nights of churn published by the first of them, and two of the others. What each command makes
of it undisturbed is the reference. Each round copies the base, disturbs one command up to three
times, lets it run to its end, and compares: what readers saw, what is published, the bytes of the
datasets, how often pointers moved, and what is left behind.

A round is told by the seed and its number: ``--only 17 --seed 7`` does one again. The last line is
one JSON object.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from chaos import faults
from chaos.checks import (
    Outcome,
    assert_no_process_is_left,
    assert_nothing_is_half_done,
    assert_nothing_is_left_behind,
    assert_same,
    datasets_of,
    model_of,
    outcome_of,
    published_of,
)
from chaos.reader import Reader, State, look
from chaos.worlds import (
    READER,
    WRITER,
    Victim,
    copied,
    environment,
    make_model_store,
    nightshift,
    removed,
    settings_of,
    victim,
)
from nightshift.demo_data.run import write_landing
from nightshift.services.postgres import EmbeddedPostgres, free_port
from nightshift.settings import Settings
from nightshift.use_cases import USE_CASES

PASSWORD = "only-for-chaos"
NIGHT, NEXT = date(2025, 12, 9), date(2025, 12, 16)
MOST_DISTURBANCES = 3
PREPARED = ("ingest", "quality", "transform", "quality_marts", "extract")


@dataclass(frozen=True)
class Command:
    """What is disturbed.

    Attributes:
        arguments: of ``nightshift``.
        lines: words on stderr at which it is killed.
        as_of: whose outcome is compared.
        is_publishing: whether it copies a publication and moves pointers.
        is_spark: whether it starts Spark.
        weight: how often it is in the deck that rounds are dealt from.
    """

    name: str
    arguments: tuple[str, ...]
    lines: tuple[str, ...]
    as_of: date
    is_publishing: bool = True
    is_spark: bool = True
    weight: int = 1


def _stages(*names: str) -> tuple[str, ...]:
    return tuple(f"stage {name}: begins" for name in names)


OTHERS = tuple(use_case for use_case in USE_CASES if use_case.name != "churn")
OF_CHURN = ("--use-case", "churn")
OF_THE_OTHERS = tuple(word for each in OTHERS for word in ("--use-case", each.name))
COMMANDS = (
    Command(
        "nightly", ("nightly", "--as-of", str(NEXT)),
        (*_stages(*PREPARED, "features", "score", "publish", "prune", "challenge"), "dbt: "), NEXT,
    ),
    Command(
        "nightly_again", ("nightly", "--as-of", str(NIGHT)),
        _stages(*PREPARED, "features", "score", "publish", "prune"), NIGHT,
    ),
    Command(
        "backfill", ("backfill", "--from", "2025-12-06", "--to", "2025-12-11"),
        _stages("plan", *PREPARED, "features", "score", "publish"), NIGHT,
    ),
    Command(
        "publish", ("publish", "--as-of", "2025-12-08"), (), date(2025, 12, 8),
        is_spark=False, weight=3,
    ),
    Command(
        "train", ("train", "churn", "--as-of", str(NEXT)),
        (
            *_stages(*PREPARED, "training_set", "training", "gates"),
            "fitted ", "learning curve and ablation", "registered churn version",
            "alias champion named",  # the promotion is recorded, and MLflow does not say so yet
        ), NEXT,
        is_publishing=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """What a command makes of the base when nothing disturbs it."""

    seconds: float
    shown: State
    outcome: Outcome
    published: dict[str, list[tuple[object, ...]]]
    datasets: dict[str, list[tuple[str, str]]]
    model: str | None
    lake_bytes: int


@dataclass
class Round:
    """One world, one command, and what disturbs it."""

    world: Settings
    command: Command
    reference: Reference
    random: random.Random
    counts: Counter[str]
    done: list[str] = field(default_factory=list)

    def instant(self) -> float:
        """Seconds into the run, any of its length."""
        return self.random.uniform(0, self.reference.seconds)

    @contextmanager
    def running(self, more: dict[str, str] | None = None) -> Iterator[Victim]:
        with victim(self.world, *self.command.arguments, more=more) as process:
            yield process

    def ended(self, process: Victim, *, must_fail: bool = False) -> None:
        """That it has ended well, or with an error that says what to do."""
        code = process.wait()
        if code == 0 and not must_fail:
            self.counts["ended_well"] += 1
            return
        self.counts["refusals"] += 1
        assert process.refusal


class Skipped(Exception):
    """What this machine does not allow."""


def kill_at_an_instant(round_: Round, server: EmbeddedPostgres) -> None:
    """SIGKILL to the whole process group."""
    with round_.running() as process:
        at = round_.instant()
        round_.done.append(f"kill after {at:.1f} s")
        _pass(process, at)
        if process.is_running:
            process.kill()
            round_.counts["kills"] += 1


def kill_the_process_alone(round_: Round, server: EmbeddedPostgres) -> None:
    """SIGKILL to the command itself: Spark's JVM and its workers are to end by themselves."""
    with round_.running() as process:
        at = round_.instant()
        round_.done.append(f"kill of the process alone after {at:.1f} s")
        _pass(process, at)
        if process.is_running:
            process.kill_alone()
            round_.counts["kills"] += 1
    assert_no_process_is_left(round_.world)


def kill_at_a_line(round_: Round, server: EmbeddedPostgres) -> None:
    """SIGKILL at the begin of a stage, or at another line of the log."""
    words = round_.random.choice(round_.command.lines)
    round_.done.append(f"kill at {words!r}")
    with round_.running() as process:
        _wait_or_end(process, lambda: process.says(words))
        if process.is_running:
            process.kill()
            round_.counts["kills"] += 1


def kill_before_a_write(round_: Round, server: EmbeddedPostgres) -> None:
    """SIGKILL before what a publication attaches, or what pointers move, is written."""
    table = round_.random.choice(["ops.publications", "predictions.pointers"])
    round_.done.append(f"kill before a write to {table}")
    with faults.locked(round_.world, table), round_.running() as process:
        _wait_or_end(process, lambda: faults.waits_for(round_.world, table))
        if process.is_running:
            process.kill()
            round_.counts["kills"] += 1


def kill_in_the_commit(round_: Round, server: EmbeddedPostgres) -> None:
    """SIGKILL to the client whose pointers are being committed; the server commits them."""
    _in_the_commit(round_, server, lambda process: process.kill(), "kill", "kills")


def crash_in_the_commit(round_: Round, server: EmbeddedPostgres) -> None:
    """The server crashes before the commit of pointers is recorded, or after it."""
    is_recorded = round_.random.random() < 0.5

    def crashed(process: Victim) -> None:
        faults.crash_in_the_commit(server, round_.world, is_recorded=is_recorded)

    where = "after" if is_recorded else "before"
    with faults.replicable(server) if is_recorded else nullcontext():
        _in_the_commit(round_, server, crashed, f"crash {where} the record", "restarts")


def _in_the_commit(
    round_: Round,
    server: EmbeddedPostgres,
    disturb: Callable[[Victim], None],
    what: str,
    counted: str,
) -> None:
    round_.done.append(f"{what} in the commit of pointers")
    with faults.held(server, round_.world, faults.IN_THE_COMMIT, ""), round_.running() as process:
        _wait_or_end(process, lambda: faults.is_held(round_.world, "^commit"))
        if process.is_running:
            disturb(process)
            round_.counts[counted] += 1
            if counted == "restarts":
                round_.ended(process)


def kill_in_a_copy(round_: Round, server: EmbeddedPostgres) -> None:
    """SIGKILL while a publication is being copied."""
    _in_a_copy(round_, server, lambda process: process.kill(), "kill", "kills")


def crash_in_a_copy(round_: Round, server: EmbeddedPostgres) -> None:
    """The server crashes while a publication is being copied."""

    def crashed(process: Victim) -> None:
        faults.crash(server)
        faults.restarted(server)

    _in_a_copy(round_, server, crashed, "crash", "restarts")


def _in_a_copy(
    round_: Round,
    server: EmbeddedPostgres,
    disturb: Callable[[Victim], None],
    what: str,
    counted: str,
) -> None:
    outcomes = {"churn": round_.reference.outcome["predictions"]}
    outcomes |= {u.name: round_.reference.outcome[f"predictions of {u.name}"] for u in OTHERS}
    use_case = round_.random.choice(sorted(outcomes))
    key = round_.random.choice(outcomes[use_case])[0]
    plant = faults.on_the_publication(use_case, key)
    round_.done.append(f"{what} in the COPY of a publication of {use_case}")
    with (
        faults.held(server, round_.world, plant, faults.NOT_ON_THE_PUBLICATION),
        round_.running() as process,
    ):
        _wait_or_end(process, lambda: bool(faults.rows_of_a_held_copy(round_.world)))
        if process.is_running:
            disturb(process)
            round_.counts[counted] += 1
            if counted == "restarts":
                round_.ended(process)


def crash_at_an_instant(round_: Round, server: EmbeddedPostgres) -> None:
    """The server crashes, and is back after a while."""
    with round_.running() as process:
        at, away = round_.instant(), round_.random.uniform(0, 3)
        round_.done.append(f"crash of Postgres after {at:.1f} s, for {away:.1f} s")
        _pass(process, at)
        faults.crash(server)
        time.sleep(away)
        faults.restarted(server)
        round_.counts["restarts"] += 1
        round_.ended(process)


def kill_the_jvm(round_: Round, server: EmbeddedPostgres) -> None:
    """SIGKILL to Spark's JVM alone."""
    with round_.running() as process:
        _wait_or_end(process, lambda: process.java() is not None)
        at = round_.random.uniform(0, 6)
        round_.done.append(f"kill of the JVM {at:.1f} s after its start")
        _pass(process, at)
        if (java := process.java()) is not None:
            java.kill()
            round_.counts["jvm_kills"] += 1
        round_.ended(process)


def close_the_model_store(round_: Round, server: EmbeddedPostgres) -> None:
    """Nobody gets into MLflow's database, from an instant on."""
    with ExitStack() as stack:
        process = stack.enter_context(round_.running())
        at = round_.random.choice([0.0, round_.instant()])
        round_.done.append(f"MLflow's store closed after {at:.1f} s")
        _pass(process, at)
        stack.enter_context(faults.closed(server, round_.world.mlflow_uri))
        round_.counts["closed_stores"] += 1
        round_.ended(process)


def fill_the_disk(round_: Round, server: EmbeddedPostgres) -> None:
    """The lake is on a disk that is full after some bytes; then there is room again."""
    needed = max(round_.reference.lake_bytes - _bytes_of(round_.world.lake_dir), 100_000)
    size = _bytes_of(round_.world.lake_dir) + round_.random.randrange(needed)
    round_.done.append(f"a disk of {size:,} bytes for the lake")
    kept = round_.world.lake_dir.with_name("lake-before")
    round_.world.lake_dir.rename(kept)
    try:
        with faults.small_disk(round_.world.lake_dir, "1g") as is_mounted:
            if is_mounted:
                shutil.copytree(kept, round_.world.lake_dir, dirs_exist_ok=True)
                faults.grown(round_.world.lake_dir, str(size + _slack(round_.world.lake_dir)))
                with round_.running() as process:
                    round_.ended(process)
                round_.counts["full_disks"] += 1
                shutil.rmtree(kept)
                shutil.copytree(round_.world.lake_dir, kept)
    finally:
        round_.world.lake_dir.rmdir()
        kept.rename(round_.world.lake_dir)
    if not is_mounted:
        raise Skipped("a full disk: this account may not mount a tmpfs")


def change_the_clock(round_: Round, server: EmbeddedPostgres) -> None:
    """The command runs a year and more ahead; or before the date it is for, and is refused."""
    shift = round_.random.choice(["+400d", "@2025-11-30 12:00:00"])
    round_.done.append(f"the clock at {shift}")
    more = faults.clock(shift)
    if more is None:
        raise Skipped("another clock: libfaketime is not there")
    with round_.running(more) as process:
        round_.ended(process)
        if shift.startswith("+"):
            assert process.wait() == 0, process.said
    round_.counts["clocks"] += 1


def run_two_at_once(round_: Round, server: EmbeddedPostgres) -> None:
    """The same command twice at the same time; one may be killed."""
    is_killed = round_.random.random() < 0.5
    round_.done.append("two at once" + (", the first is killed" if is_killed else ""))
    with round_.running() as first, round_.running() as second:
        if is_killed:
            _pass(first, round_.instant())
            if first.is_running:
                first.kill()
                round_.counts["kills"] += 1
        else:
            assert first.wait() == 0, first.said
        assert second.wait() == 0, second.said
    round_.counts["pairs"] += 1


def _any(command: Command) -> bool:
    return True


def _has_lines(command: Command) -> bool:
    return bool(command.lines)


def _publishes(command: Command) -> bool:
    return command.is_publishing


def _starts_spark(command: Command) -> bool:
    return command.is_spark


Disturbance = Callable[[Round, EmbeddedPostgres], None]
DISTURBANCES: dict[Disturbance, Callable[[Command], bool]] = {
    kill_at_an_instant: _any,
    kill_the_process_alone: _starts_spark,
    kill_at_a_line: _has_lines,
    kill_before_a_write: _publishes,
    kill_in_a_copy: _publishes,
    kill_in_the_commit: _publishes,
    crash_in_a_copy: _publishes,
    crash_in_the_commit: _publishes,
    crash_at_an_instant: _any,
    kill_the_jvm: _starts_spark,
    close_the_model_store: _any,
    fill_the_disk: _any,
    change_the_clock: _any,
    run_two_at_once: _any,
}
"""With the commands that each suits."""


def deal(seed: int, commands: list[Command]) -> Iterator[tuple[Command, list[Disturbance]]]:
    """What each round does, from the first on: from shuffled decks, so that none waits for luck.

    A deck of disturbances holds each once; one that does not suit a round's command waits for the
    next that it suits.
    """
    chance = random.Random(seed)
    kinds = [(d, suits) for d, suits in DISTURBANCES.items() if any(map(suits, commands))]
    waiting: list[tuple[Disturbance, Callable[[Command], bool]]] = []
    while True:
        deck = [command for command in commands for _ in range(command.weight)]
        for command in chance.sample(deck, len(deck)):
            chosen: list[Disturbance] = []
            for _ in range(chance.randint(1, MOST_DISTURBANCES)):
                while not any(suits(command) for _, suits in waiting):
                    waiting += chance.sample(kinds, len(kinds))
                place = next(n for n, (_, suits) in enumerate(waiting) if suits(command))
                chosen.append(waiting.pop(place)[0])
            yield command, chosen


def _pass(process: Victim, seconds: float) -> None:
    """Let time pass, while it runs."""
    deadline = time.monotonic() + seconds
    while process.is_running and time.monotonic() < deadline:
        time.sleep(0.01)


def _wait_or_end(process: Victim, happens: Callable[[], bool]) -> None:
    """Until it happens, or the process has ended: what was done before is not done again."""
    while process.is_running and not happens():
        time.sleep(0.02)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _slack(folder: Path) -> int:
    """What a tmpfs takes beyond the bytes of its files: they are kept in pages."""
    return 4096 * sum(1 for _ in folder.rglob("*"))


def the_base(server: EmbeddedPostgres, root: Path) -> Settings:
    """A shop, models, and published nights; made where it is not there."""
    base = settings_of(server, "base", root, root / "landing", "base_mlflow")
    if (done := root / "base-is-made").exists():
        with server.superuser() as connection, connection.cursor() as cursor:
            cursor.execute("select datname from pg_database where datname ~ '^(round|undisturbed)'")
            for (name,) in cursor.fetchall():
                cursor.execute(f"drop database {name} with (force)")
        for pattern in ("round_*", "undisturbed_*"):
            for left in root.glob(pattern):
                shutil.rmtree(left)
        return base
    make_base(server, root, base)
    done.touch()
    return base


SCORES = """
from datetime import date
from nightshift.features.run import build_features
from nightshift.scoring.run import score
from nightshift.settings import load_settings
from nightshift.use_cases import USE_CASES
settings, as_of = load_settings(), date(2025, 12, 8)
build_features(settings, USE_CASES, as_of)
for use_case in USE_CASES:
    score(settings, use_case, as_of)
"""


def make_base(server: EmbeddedPostgres, root: Path, base: Settings) -> None:
    """Through the command line."""
    write_landing(
        root / "landing", customers=800, lines=45_000, card_holders=300, start=date(2024, 7, 1)
    )
    make_model_store(server, "base_mlflow")
    server.ensure_database("base", WRITER, READER)
    for arguments in (
        ("train", "churn", "--as-of", "2025-12-02"),
        ("backfill", "--from", "2025-12-06", "--to", str(NIGHT), *OF_CHURN),
        *(("train", each.name, "--as-of", str(NIGHT)) for each in USE_CASES),
        ("backfill", "--from", "2025-12-06", "--to", "2025-12-07", *OF_THE_OTHERS),
    ):
        _say(f"base: nightshift {' '.join(arguments)}")
        done = nightshift(base, *arguments)
        if done.returncode != 0 and arguments[0] == "train":
            # gates are not what is tried here
            version = "2" if arguments[1:] == ("churn", "--as-of", str(NIGHT)) else "1"
            done = nightshift(
                base, "promote", arguments[1], "--version", version, "--despite-gates",
                "--reason", "chaos", "--by", "chaos",
            )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    _say("base: scores that are not published")
    done = subprocess.run(
        [sys.executable, "-c", SCORES], env=environment(base), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def reference_of(server: EmbeddedPostgres, base: Settings, command: Command) -> Reference:
    """The command on a copy of the base, undisturbed."""
    world = copied(server, base, f"undisturbed_{command.name}")
    began = time.monotonic()
    done = nightshift(world, *command.arguments)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    found = Reference(
        seconds, look(world.reader_url, USE_CASES), outcome_of(world, command.as_of, OTHERS),
        published_of(world),
        datasets_of(world), model_of(world), _bytes_of(world.lake_dir),
    )  # fmt: skip
    assert_nothing_is_left_behind(world)
    removed(server, world)
    _say(f"undisturbed {command.name}: {seconds:.1f} s")
    return found


def run_round(
    round_: Round,
    chosen: list[Disturbance],
    server: EmbeddedPostgres,
    before: State,
    skipped: set[str],
) -> None:
    """Disturb, run to the end, compare."""
    world, command, reference = round_.world, round_.command, round_.reference
    with Reader(world.reader_url, USE_CASES, before, reference.shown) as reader:
        for disturb in chosen:
            try:
                disturb(round_, server)
            except Skipped as why:
                skipped.add(str(why))
            assert_nothing_is_half_done(world)
        done = nightshift(world, *command.arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        shown = look(world.reader_url, USE_CASES)
    seen = reader.seen
    round_.counts["reader_polls"] += seen.polls
    round_.counts["reader_outages"] += seen.outages
    for name in ("longest_wait", "longest_gap"):
        round_.counts[name] = max(round_.counts[name], round(1000 * getattr(seen, name)))
    assert shown == reference.shown, f"readers see {shown} in the end"
    assert_same(outcome_of(world, command.as_of, OTHERS), reference.outcome)
    assert_same(published_of(world), reference.published)
    assert_same(datasets_of(world), reference.datasets)
    assert model_of(world) == reference.model, "another model"
    assert_nothing_is_half_done(world)
    assert_nothing_is_left_behind(world)
    assert not seen.violations, f"{seen.violated} polls: {seen.violations}"


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main() -> int:
    """Rounds until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=20.0, help="after the base is made")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", type=int, help="number of the one round to do")
    parser.add_argument("--command", choices=[c.name for c in COMMANDS], help="only this one")
    parser.add_argument(
        "--folder", type=Path, help="where worlds are made; it stays, and its base is used again"
    )
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    # not in pytest's or a user's folder: it may be closed to the account that runs Postgres
    root = asked.folder or Path(tempfile.mkdtemp(prefix="nightshift-chaos-"))
    server = EmbeddedPostgres(root / "postgres", free_port(16432), PASSWORD)
    counts: Counter[str] = Counter()
    skipped: set[str] = set()
    violations: list[str] = []
    rounds: list[str] = []
    try:
        server.start()
        server.ensure_role(WRITER, PASSWORD)
        server.ensure_role(READER, PASSWORD)
        server.ensure_group("nightshift_auditor")
        base = the_base(server, root)
        before = look(base.reader_url, USE_CASES)
        commands = [c for c in COMMANDS if asked.command in (None, c.name)]
        references: dict[str, Reference] = {}
        deadline = time.monotonic() + 60 * asked.minutes
        for number, (command, chosen) in enumerate(deal(asked.seed, commands), 1):
            if time.monotonic() > deadline:
                break
            if asked.only and number != asked.only:
                continue
            chance = random.Random(f"{asked.seed}:{number}")
            if command.name not in references:
                references[command.name] = reference_of(server, base, command)
            world = copied(server, base, f"round_{number}")
            round_ = Round(world, command, references[command.name], chance, counts)
            try:
                run_round(round_, chosen, server, before, skipped)
                how = "as undisturbed"
            except Exception as error:
                how = f"VIOLATION: {(str(error) or repr(error)).splitlines()[0]}"
                violations.append(f"round {number}, {command.name}: {how}")
                traceback.print_exc()
                if not server.is_running():
                    faults.restarted(server)
            removed(server, world)
            rounds.append(command.name)
            _say(f"round {number}: {command.name}; {'; '.join(round_.done)}; {how}")
            if asked.only:
                break
    finally:
        server.stop()
        if asked.folder is None:
            shutil.rmtree(root)
    print(
        json.dumps(
            {
                "name": "chaos",
                "seed": asked.seed,
                "rounds": len(rounds),
                "commands": dict(Counter(rounds)),
                **{
                    name: counts[name]
                    for name in (
                        "kills", "restarts", "jvm_kills", "closed_stores", "full_disks", "clocks",
                        "pairs", "refusals", "reader_polls", "reader_outages",
                    )
                },
                "reader_longest_wait_ms": counts["longest_wait"],
                "reader_longest_gap_ms": counts["longest_gap"],
                "skipped": sorted(skipped),
                "violations": len(violations),
            }
        )
    )  # fmt: skip
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
