"""The command line: the same functions that Airflow's tasks call, without Airflow."""

import getpass
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from nightshift.backfill.plan import ModelChoice
from nightshift.contracts import SOURCES, load_contract
from nightshift.errors import GateError, NightshiftError, joined
from nightshift.settings import Settings, load_settings
from nightshift.task_notes import of_rollback
from nightshift.use_cases import USE_CASES, find_use_case

if TYPE_CHECKING:
    from nightshift.erasure.run import Certificate
    from nightshift.features.parity import Report
    from nightshift.gates.rules import GateResult
    from nightshift.io.registry import Decision
    from nightshift.monitoring.run import ChosenThreshold, MaturedQuality, RuleFigures
    from nightshift.pipeline import Case
    from nightshift.publishing.history_run import Difference, RolledBack
    from nightshift.scaffold.run import Written
    from nightshift.scaffold.sample import Inferred
    from nightshift.scoring.run import Explained
    from nightshift.services.run import ServiceStatus
    from nightshift.spec import UseCase

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Batch machine learning whose predictions are in your Postgres by morning.",
)
# A log file has no width of its own, and 80 columns would cut names.
console = Console(width=None if sys.stdout.isatty() else 120)

quarantine_app = typer.Typer(no_args_is_help=True, help="Rows that broke their contract.")
app.add_typer(quarantine_app, name="quarantine")
features_app = typer.Typer(no_args_is_help=True, help="What models see: declared features.")
app.add_typer(features_app, name="features")
publications_app = typer.Typer(no_args_is_help=True, help="What was published, and what changed.")
app.add_typer(publications_app, name="publications")


class _OrRun(TyperGroup):
    """`train churn …` is `train run churn …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the command that is left out."""
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


train_app = typer.Typer(
    cls=_OrRun,
    no_args_is_help=True,
    help="Train and judge: `train <use case>… --as-of <date>`; or do a training again.",
)
app.add_typer(train_app, name="train")

AsOf = Annotated[
    datetime,
    typer.Option(
        formats=["%Y-%m-%d"],
        help="The cut-off: what happened and landed before this date is known.",
    ),
]
UseCaseNames = Annotated[
    list[str] | None, typer.Option(help="More than once for several; default: all.")
]
UseCaseName = Annotated[
    str, typer.Argument(help=f"One of: {', '.join(u.name for u in USE_CASES)}.")
]

_QUIET = (
    "alembic", "azure", "botocore", "dbt", "great_expectations", "matplotlib", "mlflow", "py4j",
    "pyspark", "urllib3",
)  # fmt: skip


def _log_to_console() -> None:
    handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="[%X]")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def refusals() -> Iterator[Settings]:
    """The settings for a command; a refusal is shown without a traceback and exits with 1."""
    _log_to_console()
    try:
        yield load_settings()
    except NightshiftError as error:
        Console(stderr=True).print(Text(f"refused: {error}", style="red"))
        raise typer.Exit(1) from error


@app.command()
def up() -> None:
    """Start the embedded Postgres and Airflow; show URLs and logins."""
    with refusals() as settings:
        from nightshift.services.run import up as start

        show_services(start(settings))


@app.command()
def down() -> None:
    """Stop what `up` started; the data stays."""
    with refusals() as settings:
        from nightshift.services.run import down as stop

        stopped = stop(settings)
        console.print("stopped: " + ", ".join(stopped) if stopped else "nothing was running")


@app.command()
def status() -> None:
    """Show what runs where, with logins."""
    with refusals() as settings:
        from nightshift.quality.run import newest_report
        from nightshift.services.run import status as look

        show_services(look(settings))
        report = newest_report(settings)
        if report is not None:
            console.print(f"newest data quality report: {report}", soft_wrap=True)


@app.command()
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Really delete all data.")] = False,
) -> None:
    """Stop the services and delete their data, the lake and the generated landing zone."""
    with refusals() as settings:
        from nightshift.services.run import reset as delete

        delete(settings, yes)
        console.print(f"{settings.state_dir} is empty again")


@app.command()
def doctor() -> None:
    """Check every prerequisite and service; print a remedy for each that fails."""
    with refusals() as settings:
        from nightshift.doctor import check

        checks = check(settings)
        table = Table("", "check", "found", "remedy")
        for each in checks:
            mark = "[green]ok[/]" if each.is_ok else "[red]FAIL[/]"
            table.add_row(mark, each.name, Text(each.detail), Text(each.remedy))
        console.print(table)
        if not all(each.is_ok for each in checks):
            raise typer.Exit(1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def airflow(context: typer.Context) -> None:
    """Run any command of Airflow's own command line on the embedded Airflow."""
    with refusals() as settings:
        from nightshift.services.run import airflow_environment

        command = Path(sys.executable).with_name("airflow")
        os.execve(command, ["airflow", *context.args], airflow_environment(settings))


@app.command()
def demo_data(
    landing: Annotated[
        Path | None, typer.Option(help="Folder to write; default: the setting NIGHTSHIFT_LANDING.")
    ] = None,
    customers: Annotated[int, typer.Option(help="Customers the shop has ever had.")] = 2_500,
    lines: Annotated[int, typer.Option(help="Order lines in all, about.")] = 225_000,
    card_holders: Annotated[
        int, typer.Option(help="Holders of cards, whose payments land too; 0 for none.")
    ] = 600,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 20111209,
) -> None:
    """Write a landing zone of a shop whose customers really churn, and of cards with frauds."""
    with refusals() as settings:
        from nightshift.demo_data.run import write_landing

        made = write_landing(
            landing.resolve() if landing else settings.landing_folder,
            customers=customers, lines=lines, card_holders=card_holders, seed=seed,
        )  # fmt: skip
        console.print(
            f"{made.landing}: {made.folders} folders, {made.rows:,} rows; run it with"
            f" --as-of {made.as_of}"
        )


@app.command()
def ingest(as_of: AsOf) -> None:
    """Load what landed before AS_OF into raw; broken rows go to quarantine."""
    with refusals() as settings:
        from nightshift.ingest.run import ingest as run

        done = run(settings, as_of.date())
        console.print(
            f"{done.files_loaded} files loaded ({done.files_seen} seen): {done.rows_in:,} rows in ="
            f" {done.rows_loaded:,} loaded + {done.rows_quarantined:,} quarantined"
        )
        if done.held:
            raise joined(list(done.held.values()))


SourceName = Annotated[str, typer.Option(help=f"One of: {', '.join(SOURCES)}.")]
LandedPath = Annotated[
    str | None, typer.Option("--file", help="One file only, by its path in the landing zone.")
]


@quarantine_app.command("list")
def quarantine_list() -> None:
    """The quarantined rows that there are: source, file, broken column and rule, how many."""
    with refusals() as settings:
        from nightshift.io.quarantine import summary

        table = Table("source", "file", "column", "expected", "rows")
        for each in summary(settings):
            table.add_row(
                each.source,
                Text(each.path, overflow="fold"),
                each.column or "(all)",
                Text(each.rule),
                f"{each.rows:,}",
            )
        console.print(table)


@quarantine_app.command("show")
def quarantine_show(
    source: SourceName,
    file: LandedPath = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows at most.")] = 20,
) -> None:
    """Quarantined rows as they landed; personal data are masked."""
    with refusals() as settings:
        from nightshift.io.quarantine import rows

        table = Table("file", "row", "column", "expected", "found", "as landed")
        for row in rows(settings, load_contract(source), file, limit):
            table.add_row(*(Text(str(value), overflow="fold") for value in row))
        console.print(table)


@quarantine_app.command("replay")
def quarantine_replay(source: SourceName, file: LandedPath = None) -> None:
    """Check quarantined rows again, with the contract as it is now; load what is valid, once."""
    with refusals() as settings:
        from nightshift.ingest.run import replay

        done = replay(settings, source, file)
        loaded = sum(each.rows_loaded for each in done)
        left = sum(each.rows_quarantined for each in done)
        console.print(f"{len(done)} files: {loaded:,} rows loaded, {left:,} are broken still")


@features_app.command("list")
def features_list(use_case: UseCaseName) -> None:
    """Every feature: what it means, how often it is null, what the champion makes of it."""
    with refusals() as settings:
        from nightshift.features.run import catalogue

        found = catalogue(settings, find_use_case(use_case))
        table = Table("feature", "meaning", "null", "importance", show_lines=False)
        for group in dict.fromkeys(each.group for each in found.features):
            cost = found.cpu_seconds.get(group)
            spent = "" if cost is None else f", {cost:.1f} s of CPU a night"
            table.add_row(Text(f"{group}{spent}", style="bold"), "", "", "", end_section=True)
            for each in found.features:
                if each.group == group:
                    table.add_row(
                        Text(each.name, overflow="fold"),
                        Text(each.description),
                        _percent(each.null_share),
                        _percent(each.importance),
                    )
        console.print(table)
        console.print(
            "no night has computed them yet"
            if found.as_of is None
            else f"{len(found.features)} features; cost and nulls of the night {found.as_of}"
        )


@features_app.command("show")
def features_show(
    use_case: UseCaseName, name: Annotated[str, typer.Argument(help="Of the feature.")]
) -> None:
    """All that is known of one feature."""
    with refusals() as settings:
        from nightshift.features.run import catalogue

        found = catalogue(settings, find_use_case(use_case))
        features = {each.name: each for each in found.features}
        if name not in features:
            close = get_close_matches(name, features, n=3, cutoff=0.4)
            raise NightshiftError(
                f"{use_case} has no feature {name}",
                f"nearest: {', '.join(close)}" if close else f"nightshift features list {use_case}",
            )
        each = features[name]
        table = Table(show_header=False)
        for label, value in (
            ("feature", each.name),
            ("group", each.group),
            ("meaning", each.description),
            ("type", each.type),
            ("null semantics", each.null),
            ("null share", f"{_percent(each.null_share)} of the vectors of {found.as_of}"),
            ("importance", f"{_percent(each.importance)} of the champion's gain"),
        ):
            table.add_row(label, Text(value))
        console.print(table)


@features_app.command("prove")
def features_prove(
    use_case: UseCaseName,
    as_of: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="The snapshot; default: the newest with a known label."
        ),
    ] = None,
) -> None:
    """Plant what no feature may see among the rows, and show that nothing moves."""
    with refusals() as settings:
        from nightshift.features.run import prove

        trials = prove(settings, find_use_case(use_case), as_of.date() if as_of else None)
        table = Table("", "planted", "rows", "vectors", "moved that must not", "moved as it must")
        for trial in trials:
            table.add_row(
                "[green]holds[/]" if trial.holds else "[red]FAILS[/]",
                Text(trial.change),
                f"{trial.rows:,}",
                f"{trial.vectors:,}",
                Text(", ".join(trial.moved) or "nothing"),
                f"{trial.witnesses:,}",
            )
        console.print(table)
        if not all(trial.holds for trial in trials):
            raise typer.Exit(1)


@features_app.command("parity")
def features_parity(
    use_case: UseCaseName,
    as_of: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The night; default: the newest that is kept."),
    ] = None,
) -> None:
    """Compare what a night scored with what training makes of the same night now."""
    with refusals() as settings:
        from nightshift.features.run import parity

        report = parity(settings, find_use_case(use_case), as_of.date() if as_of else None)
        show_parity(report)
        if not report.holds:
            raise typer.Exit(1)


def show_parity(report: "Report") -> None:
    """What became of a night's vectors, and why."""
    title = f"The vectors of {report.as_of}, bit for bit"
    table = Table("", "", "in both", "differ", "only before", "only after", title=title)
    for name, found, is_fault in (
        ("scored → what training makes of that night now", report.trained, True),
        ("trained → had all that landed since been known", report.hindsight, False),
    ):
        mark = "[green]same[/]" if found.is_same else "[red]FAILS[/]" if is_fault else "moved"
        counts = (found.vectors, found.differing, found.only_before, found.only_after)
        table.add_row(mark, name, *(f"{count:,}" for count in counts))
    console.print(table)
    for before, after, found in (
        ("scored", "trained", report.trained),
        ("trained", "in hindsight", report.hindsight),
    ):
        if found.moved:
            table = Table("feature", "vectors", "largest difference", before, after)
            for feature, moved in sorted(found.moved.items(), key=lambda item: -item[1].vectors):
                table.add_row(
                    Text(feature, overflow="fold"),
                    f"{moved.vectors:,}",
                    Text("·".join(moved.key), overflow="fold"),
                    *_apart(moved.before, moved.after),
                )
            console.print(table)
        for what, names in (("no more", found.dropped), ("new", found.added)):
            if names:
                console.print(f"{what}: {', '.join(sorted(names))}", soft_wrap=True)
    for source, days in report.late.items():
        if days:
            listed = [f"{day}: {rows:,}" for day, rows in days.items()]
            more = f" and {len(listed) - 5} more days" if len(listed) > 5 else ""
            console.print(
                f"{sum(days.values()):,} rows of {source} had happened and were unknown that night;"
                f" they landed on {', '.join(listed[:5])}{more}",
                soft_wrap=True,
            )
    for cause in report.causes():
        console.print(f"other than that night: {cause}", soft_wrap=True)
    if report.scored is False:
        console.print("the scores of that night were made of other vectors than are kept now")


def _apart(*values: float | str | None) -> list[Text]:
    """Values in short, or in full where they would look the same."""
    short = ["null" if v is None else f"{v:g}" if isinstance(v, float) else v for v in values]
    return [Text(text) for text in (short if len(set(short)) > 1 else map(repr, values))]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _named(names: list[str] | None) -> tuple["UseCase", ...]:
    return tuple(find_use_case(name) for name in names) if names else USE_CASES


@app.command()
def nightly(as_of: AsOf, use_case: UseCaseNames = None) -> None:
    """Run one night end to end: ingest, quality, transform, features, score, publish."""
    with refusals() as settings:
        from nightshift import pipeline

        use_cases = _named(use_case)
        result = pipeline.nightly(settings, use_cases, as_of.date())
        for each in result.publications:
            state = "published" if each.is_new else "unchanged"
            console.print(
                f"{each.use_case}: {each.rows:,} predictions for {result.as_of} {state}"
                f" (model version {each.model_version}, publication {each.publication_id})"
            )
        for served in use_cases:
            if not served.is_due(as_of.date()):
                console.print(f"{served.name}: {served.why_not_due(as_of.date())}")
            show_top(settings, served.name)


@train_app.command("run")
def train(
    use_case: Annotated[
        list[str], typer.Argument(help=f"Some of: {', '.join(u.name for u in USE_CASES)}.")
    ],
    as_of: AsOf,
    trials: Annotated[
        int | None,
        typer.Option(min=0, help="Of the search for parameters; default: the spec's. 0: none."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Of the search's trials, all together.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge, and leave the champion in any case.")
    ] = False,
) -> None:
    """Train, judge by the gates, and promote when all of them pass; exits with 1 when refused.

    Of several use cases each is judged for itself; what landed is loaded and checked once. One with
    manual approval is promoted in Airflow, or by `promote`.
    """
    with refusals() as settings:
        from nightshift import pipeline

        use_cases = [find_use_case(name) for name in dict.fromkeys(use_case)]
        pipeline.prepare(settings, use_cases, as_of.date())
        refused: list[NightshiftError] = []
        for each in use_cases:
            verdict = pipeline.train(
                settings,
                each,
                as_of.date(),
                trials=trials,
                minutes=minutes,
                may_promote=not dry_run,
                is_prepared=True,
            )
            show_gates(verdict.results)
            try:
                verdict.require_passed()
            except GateError as refusal:
                refused.append(refusal)
            else:
                console.print(f"{each.name} version {verdict.candidate_version}: {verdict.outcome}")
        if refused:
            raise joined(refused)


@train_app.command()
def reproduce(
    run: Annotated[str, typer.Argument(help="An MLflow run's id, or a version, as churn/3.")],
) -> None:
    """Make a run's training set and model again, and compare both; exits with 1 if one differs."""
    with refusals() as settings:
        from nightshift import pipeline

        found = pipeline.reproduce(settings, run)
        table = Table("", "", "", "SHA-256", title=f"MLflow run {found.run_id}")
        for what, (then, now) in (("training set", found.dataset), ("model", found.model)):
            mark = "[green]same[/]" if then == now else "[red]DIFFERS[/]"
            table.add_row("", what, "then", then)
            table.add_row(mark, "", "now", now or "not made: the training set is another")
        console.print(table)
        for difference in found.differences:
            console.print(f"other than then: {difference}", soft_wrap=True)
        if not found.is_same:
            raise typer.Exit(1)


By = Annotated[
    str | None,
    typer.Option("--by", help="Who decides; default: the account that runs the command."),
]
Reason = Annotated[str, typer.Option(help="Why. It is kept for good, so name no customer.")]


@app.command()
def promote(
    use_case: UseCaseName,
    version: Annotated[str, typer.Option(help="Of the model, as MLflow's registry counts.")],
    reason: Reason,
    despite_gates: Annotated[
        bool, typer.Option("--despite-gates", help="Also when a gate failed; this is kept.")
    ] = False,
    by: By = None,
) -> None:
    """Make a version champion, from the next night on."""
    with refusals() as settings:
        from nightshift.gates.run import promote as run

        run(
            settings, find_use_case(use_case), version, by or getpass.getuser(), reason,
            despite_gates=despite_gates,
        )  # fmt: skip
        console.print(f"{use_case} version {version} is champion and scores the next night")


@app.command()
def rollback(
    use_case: Annotated[
        list[str], typer.Argument(help=f"Some of: {', '.join(u.name for u in USE_CASES)}.")
    ],
    as_of: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            help="Show readers the publication of this date that they saw before; without a date,"
            " the model is rolled back.",
        ),
    ] = None,
    first: Annotated[
        datetime | None,
        typer.Option("--from", formats=["%Y-%m-%d"], help="The same of many dates, all at once."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="With --from: the last date. With --as-of: the id of an earlier publication."
        ),
    ] = None,
    reason: Reason = "rolled back by hand",
    by: By = None,
) -> None:
    """Go back to the previous champion, or for dates to the publications before.

    Twice goes back to where it was.
    """
    with refusals() as settings:
        person = by or getpass.getuser()
        use_cases = [find_use_case(name) for name in dict.fromkeys(use_case)]
        if as_of is not None and first is not None:
            raise NightshiftError("--as-of and --from are both given", "give one of them")
        if first is not None:
            from nightshift.publishing.history_run import roll_back_nights

            last = _date_of("--to", to)
            show_rolled_back(
                roll_back_nights(settings, use_cases, first.date(), last, person, reason)
            )
            return
        if len(use_cases) > 1:
            raise NightshiftError(
                "several use cases are rolled back only by dates",
                "give --from <date> --to <date>, or one use case",
            )
        (found,) = use_cases
        if as_of is not None:
            from nightshift.publishing.history_run import roll_back

            shown = roll_back(settings, found, as_of.date(), person, reason, to)
            console.print(
                f"{found.table} at {shown.as_of} is publication {shown.publication_id} again:"
                f" {shown.rows:,} rows by version {shown.model_version}",
                soft_wrap=True,
            )
            return
        if to is not None:
            raise NightshiftError(
                f"--to {to} names a publication, and no date",
                "give the date too: --as-of <date>; or leave both out to roll back the model",
            )
        from nightshift.gates.run import rollback as run

        version = run(settings, found, person, reason)
        console.print(f"{found.name} version {version} is champion again and scores the next night")


def _date_of(option: str, text: str | None) -> date:
    try:
        return date.fromisoformat(text or "")
    except ValueError:
        raise NightshiftError(
            f"{option} is {text!r}, and not a date", f"give {option} YYYY-MM-DD"
        ) from None


def show_rolled_back(result: "RolledBack") -> None:
    """How many dates of each use case show what they showed before, and which do not."""
    for line in of_rollback(result).splitlines():
        console.print(line.replace("**", ""), soft_wrap=True)


@publications_app.command("list")
def publications_list(
    use_case: Annotated[str | None, typer.Argument(help="Default: all.")] = None,
) -> None:
    """Every publication: which of a date readers see, and which are still kept."""
    with refusals() as settings:
        from nightshift.publishing.history_run import publications

        table = Table(
            "use case", "as_of", "publication", "version", "rows", "published", "audit", ""
        )
        for each in publications(settings, find_use_case(use_case) if use_case else None):
            table.add_row(
                each.use_case,
                str(each.as_of),
                each.publication_id,
                each.model_version,
                f"{each.rows:,}",
                f"{each.published_at.astimezone(ZoneInfo(settings.timezone)):%Y-%m-%d %H:%M}",
                f"{each.passed} of {each.applied} passed" if each.applied else "",
                "[green]readers see it[/]" if each.is_seen else "" if each.is_there else "dropped",
            )
        console.print(table)


@publications_app.command("schema")
def publications_schema(use_case: UseCaseName) -> None:
    """The JSON Schema of a published row, for those who read it."""
    with refusals():
        from nightshift.publishing.schema import json_schema

        sys.stdout.write(json.dumps(json_schema(find_use_case(use_case)), indent=2) + "\n")


@publications_app.command("prune")
def publications_prune(as_of: AsOf) -> None:
    """Drop publications that are no longer kept; move older ones to the archive."""
    with refusals() as settings:
        from nightshift.publishing.history_run import prune

        done = prune(settings, USE_CASES, as_of.date())
        for kind in ("dropped", "discarded", "archived", "waiting"):
            for name, found in getattr(done, kind).items():
                console.print(f"{name}: {len(found)} {kind}: {', '.join(found)}", soft_wrap=True)


@publications_app.command("diff")
def publications_diff(
    before: Annotated[str, typer.Argument(help="A publication's id, or how it begins.")],
    after: Annotated[str, typer.Argument(help="Another one's.")],
    rows: Annotated[int, typer.Option(min=0, help="Largest changes that are shown.")] = 10,
) -> None:
    """Which rows differ between two publications, and by how much."""
    with refusals() as settings:
        from nightshift.publishing.history_run import diff

        show_difference(diff(settings, USE_CASES, before, after, rows))


@app.command()
def history(use_case: UseCaseName) -> None:
    """Every decision on who is champion: when, by whom, on what evidence, and why."""
    with refusals() as settings:
        from nightshift.io.registry import history as read

        show_history(read(settings, find_use_case(use_case).name), settings.timezone)


@app.command()
def score(use_case: UseCaseName, as_of: AsOf) -> None:
    """Score the features of AS_OF with the champion, into the lake."""
    with refusals() as settings:
        from nightshift.scoring.run import score as run

        done = run(settings, find_use_case(use_case), as_of.date())
        console.print(f"{done.rows:,} rows scored by {use_case} version {done.model_version}")


@app.command()
def publish(as_of: AsOf, use_case: UseCaseNames = None) -> None:
    """Audit and publish the scores of AS_OF, all use cases that are due at once."""
    with refusals() as settings:
        from nightshift.publishing.run import publish as run

        due = []
        for named in _named(use_case):
            if named.is_due(as_of.date()):
                due.append(named)
            else:
                console.print(f"{named.name}: {named.why_not_due(as_of.date())}")
        for each in run(settings, due, as_of.date()).publications:
            console.print(f"{each.use_case}: {each.rows:,} rows, publication {each.publication_id}")


@app.command()
def backfill(
    first: Annotated[
        datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="The first as_of.")
    ],
    last: Annotated[
        datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="The last as_of, included.")
    ],
    use_case: UseCaseNames = None,
    model: Annotated[
        ModelChoice,
        typer.Option(help="Today's champion for all dates, or the one that was it on each date."),
    ] = "as-now",
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be done.")] = False,
    skip_without_champion: Annotated[
        bool,
        typer.Option(
            "--skip-without-champion", help="Leave such dates out; else they are refused."
        ),
    ] = False,
) -> None:
    """Score and publish many dates at once: readers see the old state, then all of the new.

    Of all use cases, those that cannot be scored at the dates are left out, and the plan says why;
    one that is named is refused.
    """
    with refusals() as settings:
        from nightshift import pipeline
        from nightshift.backfill.run import Request, of_able
        from nightshift.backfill.run import plan as look

        request = Request(
            first.date(), last.date(),
            _named(use_case),
            model, skip_without_champion,
        )  # fmt: skip
        if not use_case:
            request = of_able(settings, request)
        if plan:
            console.print(Text(look(settings, request).text), soft_wrap=True)
            return
        results = pipeline.backfill(settings, request)
        found = [each for result in results for each in result.publications]
        console.print(
            f"{len(results)} dates: {sum(each.rows for each in found):,} rows are published,"
            f" {sum(each.is_new for each in found)} of {len(found)} publications are new"
        )


@app.command()
def evaluate(use_case: UseCaseName, as_of: AsOf) -> None:
    """Measure what was published for AS_OF, once its labels have landed."""
    with refusals() as settings:
        from nightshift import pipeline

        show_quality(pipeline.evaluate(settings, find_use_case(use_case), as_of.date()))


@app.command()
def rules(
    use_case: UseCaseName,
    nights: Annotated[int, typer.Option(min=1, help="How many of the newest nights.")] = 30,
) -> None:
    """What each rule beside the model found once labels had matured; and the thresholds."""
    with refusals() as settings:
        from nightshift.io.warehouse import migrate
        from nightshift.monitoring.run import rule_figures, thresholds

        found = find_use_case(use_case)
        migrate(settings)
        show_rules(
            found, rule_figures(settings, found, nights), thresholds(settings, found, nights)[:7]
        )


@app.command()
def explain(
    use_case: UseCaseName,
    entity: Annotated[str, typer.Argument(help="Its id, as it lands; or its pseudonym.")],
    as_of: AsOf,
    version: Annotated[
        str | None, typer.Option(help="Of the model; default: the champion.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Newest rows of each source at most.")] = 10,
    json_: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Replay one case: what was known, the features, what each adds, the score."""
    with refusals() as settings:
        from nightshift import pipeline

        case = pipeline.explain(
            settings, find_use_case(use_case), entity, as_of.date(), version=version, newest=rows
        )
        if json_:
            sys.stdout.write(json.dumps(case_as_json(case), indent=1, default=str) + "\n")
        else:
            show_case(case)
        if not case.explained:
            raise typer.Exit(1)


@app.command()
def receipt(
    use_case: UseCaseName,
    entity: Annotated[
        str | None,
        typer.Argument(help="Its id, as it lands; or its pseudonym. May be left out with --row."),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="What else names the row, as product_id=22423; repeat it. Default: of several rows"
            " the one with the highest score.",
        ),
    ] = None,
    as_of: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="Default: the newest date on which readers see a row of it."
        ),
    ] = None,
    publication: Annotated[
        str | None,
        typer.Option(help="Its id, as in the row; default: the one that readers see."),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="The same, and all of it, as JSON.")
    ] = False,
) -> None:
    """Where a published row comes from: model, gates, approver, training, features, files, code.

    Exits with 1 where the publication has no row of the entity, and says why.
    """
    with refusals() as settings:
        from nightshift import pipeline
        from nightshift.receipt.page import as_json, page

        named: dict[str, str] = {}
        for each in row or ():
            column, _, value = each.partition("=")
            if not value or column in named:
                raise NightshiftError(
                    f"--row {each} names no row", "give --row COLUMN=VALUE, each column once"
                )
            named[column] = value
        if entity is None and not named:
            raise NightshiftError(
                "whose receipt is not told", "give the id, or --row COLUMN=VALUE for what names it"
            )
        found = pipeline.receipt(
            settings, find_use_case(use_case), entity, as_of.date() if as_of else None, publication,
            named,
        )  # fmt: skip
        if json_:
            sys.stdout.write(json.dumps(as_json(found), indent=1, default=str) + "\n")
        else:
            console.print(page(found))
        if found.told["row"] is None:
            raise typer.Exit(1)


@app.command()
def erase(
    subject: Annotated[
        str, typer.Option(prompt=True, help="The person's id, as it lands; asked for if not given.")
    ],
    as_of: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="Default: the newest night's."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a person from landing, warehouse, lake, models' artifacts and logs, for good."""
    with refusals() as settings:
        from nightshift import pipeline

        if not yes:
            typer.confirm(
                f"Remove {subject} from {settings.landing}, the warehouse, the lake and all that"
                " was made of them? There is no way back",
                abort=True,
            )
        show_certificate(
            pipeline.erase(settings, USE_CASES, subject, as_of.date() if as_of else None)
        )


@app.command()
def demo(
    landing: Annotated[
        Path | None, typer.Option(help="Your own landing zone; default: generated data.")
    ] = None,
    as_of: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The night to run; needed with --landing."),
    ] = None,
) -> None:
    """Set everything up, train and run one night through Airflow, and show the predictions."""
    with refusals() as settings:
        from nightshift.demo import run_demo

        run_demo(settings, landing.resolve() if landing else None, as_of.date() if as_of else None)


@app.command()
def new_source(
    name: Annotated[str, typer.Argument(help="Of the source, as sensor_readings.")],
    sample: Annotated[Path, typer.Option(help="A file as it lands, of some days of rows.")],
    key: Annotated[
        str | None,
        typer.Option(help="Columns that together name a row, with commas between."),
    ] = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Rows may repeat; exact copies are dropped.")
    ] = False,
    event_time: Annotated[
        str | None, typer.Option(help="The column that says when the event happened.")
    ] = None,
    pii: Annotated[
        str | None,
        typer.Option(help="Columns with personal data, with commas between; '' for none."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Take these columns only, by their landed names; others are ignored."),
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(help="LANDED=name, where a name will not do.")
    ] = None,
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", help="column=text, integer, number or timestamp, if not as shown."),
    ] = None,
    attributes: Annotated[
        bool,
        typer.Option("--attributes", help="Rows are attributes that hold from an instant on."),
    ] = False,
    description: Annotated[str | None, typer.Option(help="What a row is, in a sentence.")] = None,
    owner: Annotated[str, typer.Option(help="The team that answers for it.")] = "data-team",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: take what is inferred.")] = False,
) -> None:
    """Write the files of a new source: contract, dbt models, quality rules, a test.

    Types, key, event time and personal data are inferred from the sample, and shown first.
    """
    with refusals():
        from nightshift.scaffold.run import look_at_sample, write_source
        from nightshift.scaffold.sample import Choices

        if without_key and key:
            raise NightshiftError("--key and --without-key are both given", "give one of them")
        chosen = Choices(
            key=() if without_key else _split(key),
            event_time=event_time,
            pii=_split(pii),
            columns=_split(columns),
            names=dict(_assigned("--rename", each) for each in rename or ()),
            types=dict(_assigned("--type", each) for each in type_ or ()),
            has_versions=attributes,
        )
        found = look_at_sample(name, sample, chosen)
        show_inferred(found)
        if not yes:
            asked_key = typer.prompt("Key, with commas between; - for none", _joined(found.key))
            asked_types = typer.prompt(
                "Other types, as column=text, with commas between; - for none",
                ",".join(f"{name}={kind}" for name, kind in chosen.types.items()) or "-",
            )
            asked_pii = typer.prompt("Personal data; - for none", _joined(found.pii))
            chosen = replace(
                chosen,
                key=_split("" if asked_key == "-" else asked_key),
                event_time=typer.prompt("Event time", found.event_time),
                pii=_split("" if asked_pii == "-" else asked_pii),
                types=dict(
                    _assigned("--type", each)
                    for each in _split("" if asked_types == "-" else asked_types) or ()
                ),
            )
            found = look_at_sample(name, sample, chosen)
            show_inferred(found)
            typer.confirm("Write the source's files?", default=True, abort=True)
        show_written(
            write_source(
                found,
                "dim" if attributes else "fct",
                owner,
                description or f"A row of {name.replace('_', ' ')}, as its sender exports it.",
            )
        )


@app.command()
def new_use_case(
    name: Annotated[str, typer.Argument(help="Of the use case, as machine_failure.")],
    entity: Annotated[str | None, typer.Option(help="What is scored, as machine.")] = None,
    key: Annotated[str | None, typer.Option(help="Its column in the sources.")] = None,
    population: Annotated[
        str | None, typer.Option(help="Source by whose recent events an entity is scored.")
    ] = None,
    active_days: Annotated[int | None, typer.Option(min=1, help="How recent.")] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="any_event or no_event, of the label's source; or an amount: count, sum."
        ),
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Of a sum: what is added up.")] = None,
    non_negative: Annotated[
        bool, typer.Option("--non-negative", help="Of a sum: it is never below 0.")
    ] = False,
    label_source: Annotated[str | None, typer.Option(help="Source of the label.")] = None,
    label_where: Annotated[
        str | None, typer.Option(help="Condition (SQL) on the events that count.")
    ] = None,
    horizon_days: Annotated[int | None, typer.Option(min=1, help="Days that it is over.")] = None,
    reporting_delay_days: Annotated[
        int, typer.Option(min=0, help="Days until all events of a day have landed.")
    ] = 0,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="<source>.<column>, once or more; of another entity that the events name"
            " <its key>:<source>.<column>."
        ),
    ] = None,
    windows: Annotated[
        str | None, typer.Option(help="Days before as_of, with commas between.")
    ] = None,
    stride_days: Annotated[
        int, typer.Option(min=1, help="Between two snapshots of the training set.")
    ] = 7,
    every_days: Annotated[
        int, typer.Option(min=1, help="Nights from one that is scored to the next.")
    ] = 1,
    score_column: Annotated[
        str | None, typer.Option(help="The published probability or amount.")
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(help="From which score a row is medium, and high, with a comma between."),
    ] = None,
    unit: Annotated[str, typer.Option(help="Of amounts, as people are told it.")] = "",
    owner: Annotated[str, typer.Option(help="The team that answers for it.")] = "data-team",
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask: refuse what is left out.")
    ] = False,
) -> None:
    """Write the files of a new use case, and list it: features, spec, exposure, schema, a test.

    What is left out is asked for. All of it can be changed in the files afterwards.
    """
    with refusals():
        from nightshift.scaffold.run import write_use_case
        from nightshift.scaffold.use_case import (
            AMOUNTS,
            BANDS,
            LABELS,
            Asked,
            declared_sources,
            numbers_of,
            proposed_features,
        )

        def given(value: str | int | None, option: str, question: str, default: str = "") -> str:
            if value is not None:
                return str(value)
            if yes:
                raise NightshiftError(f"{option} is left out", f"give {option}, or leave out --yes")
            return str(typer.prompt(question, default or None))

        sources = ", ".join(declared_sources())
        entity = given(entity, "--entity", "What is scored, as machine")
        key = given(key, "--key", "Its column in the sources", f"{entity}_id")
        population = given(population, "--population", f"Scored by events of ({sources})")
        active = given(active_days, "--active-days", "in how many days before", "30")
        label = given(label, "--label", f"What is predicted ({', '.join(LABELS)})", "any_event")
        label_source = given(label_source, "--label-source", f"of ({sources})")
        if label == "sum" and label_column is None:
            numbers = ", ".join(numbers_of(label_source))
            label_column = given(None, "--label-column", f"the sum of ({numbers})")
            non_negative = non_negative or (
                not yes and typer.confirm("which is never below 0", default=False)
            )
        horizon = given(horizon_days, "--horizon-days", "within how many days", "30")
        if not features:
            proposed = " ".join(
                proposed_features(key, [population, label_source, *declared_sources()])
            )
            features = given(None, "--features", "Features, with blanks between", proposed).split()
        if label in AMOUNTS and bands is None and not yes:
            guess = ",".join(f"{each:g}" for each in BANDS[label])
            bands = given(None, "--bands", "From which amounts it is medium, and high", guess)
        asked = Asked(
            name=name,
            entity=entity,
            key=key,
            population=population,
            active_days=_number("--active-days", active),
            label=label,
            label_source=label_source,
            label_where=label_where,
            label_column=label_column,
            non_negative=non_negative,
            bands=None if bands is None else _scores("--bands", bands),
            unit=unit,
            every_days=every_days,
            horizon_days=_number("--horizon-days", horizon),
            reporting_delay_days=reporting_delay_days,
            features=tuple(features),
            windows=tuple(
                _number("--windows", each)
                for each in given(windows, "--windows", "over how many days", "7,30").split(",")
            ),
            stride_days=stride_days,
            score_column=given(
                score_column,
                "--score-column",
                "Published amount" if label in AMOUNTS else "Published probability",
                f"expected_{label_column or label_source}"
                if label in AMOUNTS
                else f"{name}_probability",
            ),
            owner=owner,
        )
        if not yes:
            table = Table(show_header=False)
            for field, value in asdict(asked).items():
                table.add_row(
                    field, Text(_joined(value) if isinstance(value, tuple) else str(value))
                )
            console.print(table)
            typer.confirm("Write the use case's files?", default=True, abort=True)
        show_written(write_use_case(asked))
        console.print(
            f"Next: nightshift train {name} --as-of <date>; nightshift features prove {name}",
            soft_wrap=True,
        )


def _split(names: str | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _joined(names: Sequence[object]) -> str:
    return ",".join(map(str, names)) or "-"


def _assigned(option: str, given: str) -> tuple[str, str]:
    column, _, what = given.rpartition("=")
    if not column:
        form = "Landed name=new_name" if option == "--rename" else "column=text"
        raise NightshiftError(f"{option} {given}: no '='", f"write {option} '{form}'")
    return column, what


def _scores(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError as error:
        raise NightshiftError(
            f"{option}: {text!r} is no list of numbers", "give numbers with commas between"
        ) from error


def _number(option: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise NightshiftError(f"{option}: {text!r} is no number of days", "give whole days, from 1")
    return int(text)


def show_inferred(found: "Inferred") -> None:
    """What a sample tells of its columns."""
    title = f"{found.source}: {found.rows:,} rows of the sample"
    table = Table("as landed", "name", "type", "empty", "", title=title)
    for column in found.columns:
        marks = (
            ("key", column.is_key),
            ("event time", column.name == found.event_time),
            ("personal: a pseudonym from staging on", column.is_pii),
        )
        table.add_row(
            Text(column.landed_name, overflow="fold"),
            column.name,
            column.sql_type,
            f"{found.nulls[column.name]:,}",
            ", ".join(mark for mark, holds in marks if holds),
        )
    console.print(table)
    if not found.key:
        console.print("no key: rows that agree in every column are copies")
    if found.leaves_out:
        console.print(f"left out: {_joined(found.leaves_out)}", soft_wrap=True)


def show_written(written: "Written") -> None:
    """Which files are new, and which has one line more."""
    for path in written.new:
        console.print(f"new: {path}", soft_wrap=True)
    if written.edited is not None:
        console.print(f"one line more: {written.edited}", soft_wrap=True)


def show_case(case: "Case") -> None:
    """What was known of an entity, and how its score comes about."""
    use_case = case.use_case
    console.print(
        f"{use_case.title}: {use_case.key} {case.entity} as of {case.as_of}; the lake holds what"
        f" landed until {case.replayed.landed_until}",
        soft_wrap=True,
    )
    for source, rows in case.replayed.rows.items():
        names = [name for name in rows.column_names if name != use_case.key]
        title = f"{source}: the newest {rows.num_rows} of {case.replayed.known[source]:,} rows"
        table = Table(*(Column(name, overflow="fold") for name in names), title=title)
        for row in rows.select(names).to_pylist():
            table.add_row(*(Text("" if v is None else str(v)) for v in row.values()))
        console.print(table)
    if not case.explained:
        console.print(
            f"not in the population at {case.as_of}, so it is not scored: {_population(use_case)}",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
    for each in case.explained:
        table = Table("feature", "value", "adds", "", title=" · ".join(each.names.values()))
        table.add_row("(constant)", "", f"{each.bias:+.4f}", "")
        for part in each.contributions:
            value = "null" if part.value is None else f"{part.value:g}"
            direction = part.direction if part.contribution else ""
            table.add_row(part.feature, value, f"{part.contribution:+.4f}", direction)
        total = each.bias + sum(part.contribution for part in each.contributions)
        before = {"logistic": ", before calibration", "tweedie": ", before the factor"}
        unit = use_case.reason_unit + before.get(use_case.loss, "")
        table.add_row(f"sum: {unit}", "", f"{total:+.4f}", "", style="bold")
        console.print(table)
        console.print(
            f"{use_case.score_column} {each.score!r}{_between(each)}, band {each.band}, by version"
            f" {each.model_version} (MLflow run {each.mlflow_run_id})",
            soft_wrap=True,
        )
        console.print(_as_published(each), soft_wrap=True)


def _between(each: "Explained") -> str:
    return "" if each.interval is None else " between {:.6g} and {:.6g}".format(*each.interval)


def _population(use_case: "UseCase") -> str:
    population = use_case.population
    if not hasattr(population, "active_days"):
        return f"scored is each event of {population.source.name} of the day before"
    where = f" where {population.where}" if population.where else ""
    return f"an event of {population.source.name}{where} in the last {population.active_days} days"


def _as_published(each: "Explained") -> str:
    published = each.published
    if published is None:
        return "nothing is published for this row and date"
    what = f"publication {published.publication_id} of version {published.model_version}"
    if each.is_as_published is None:
        return f"{what} says {published.score!r}"
    if each.is_as_published:
        return f"{what} has the same bits"
    return f"{what} says {published.score!r}, which are OTHER bits"


def case_as_json(case: "Case") -> dict[str, Any]:
    """What ``show_case`` shows."""
    return {
        "use_case": case.use_case.name,
        "as_of": case.as_of,
        case.use_case.key: case.entity,
        "landed_until": case.replayed.landed_until,
        "rows_known": dict(case.replayed.known),
        "rows": {source: rows.to_pylist() for source, rows in case.replayed.rows.items()},
        "in_population": bool(case.explained),
        "scores": [asdict(each) | {"same_bits": each.is_as_published} for each in case.explained],
    }


def show_services(services: Sequence["ServiceStatus"]) -> None:
    """A table of services."""
    table = Table("service", "runs", "where", "")
    for each in services:
        runs = "[green]yes[/]" if each.is_running else "[red]no[/]"
        table.add_row(each.name, runs, Text(each.address, overflow="fold"), Text(each.detail))
    console.print(table)


def show_gates(results: Sequence["GateResult"]) -> None:
    """The gate report."""
    table = Table("gate", "", "detail", title="Gates")
    for each in results:
        mark = "[green]passed[/]" if each.passed else "[red]FAILED[/]"
        table.add_row(each.gate, mark, Text(each.detail))
    console.print(table)


def show_history(decisions: Sequence["Decision"], timezone: str) -> None:
    """Decisions on the champion, oldest first."""
    table = Table("when", "what", "version", "by", "gates", "reason", "MLflow run")
    for each in decisions:
        gates = f"{each.gates_passed} of {len(each.gate_result_ids)} passed"
        who = each.by.actor if each.by.person is None else f"{each.by.person} ({each.by.actor})"
        table.add_row(
            f"{each.decided_at.astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M}",
            each.action,
            f"{each.from_version or 'none'} → {each.to_version}",
            Text(who),
            f"{gates}, promoted despite them" if each.despite_gates else gates,
            Text(each.reason, overflow="fold"),
            each.mlflow_run_id[:8],
        )
    console.print(table)


def show_quality(quality: "MaturedQuality") -> None:
    """What the published scores and each baseline were worth on the window after ``as_of``."""
    from nightshift.training.studies import called

    title = (
        f"{quality.use_case}, measured on the window after {quality.as_of}: {quality.rows:,} rows, "
        f"base rate {quality.base_rate:.3f}, model version {quality.model_version}"
    )
    table = Table("scorer", *map(called, quality.metrics), title=title, min_width=len(title))
    for scorer, figures in quality.figures.items():
        shown = (figures.get(metric) for metric in quality.metrics)
        table.add_row(
            scorer,
            *("" if e is None else f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in shown),
        )
    console.print(table)


def show_difference(found: "Difference") -> None:
    """What changed from one publication to another."""
    for name, each in (("before", found.before), ("after", found.after)):
        console.print(
            f"{name}: {each.publication_id}, {each.use_case} at {each.as_of} by version"
            f" {each.model_version}, {each.rows:,} rows",
            soft_wrap=True,
        )
    console.print(
        f"{found.rows_in_both:,} rows in both, {found.rows_changed:,} of them with another score;"
        f" {found.rows_new:,} new, {found.rows_gone:,} gone",
        soft_wrap=True,
    )
    table = Table("band before", "band after", "rows", title="Rows that moved to another band")
    for (old, new), rows in found.bands.items():
        table.add_row(old, new, f"{rows:,}")
    console.print(table)
    table = Table("share of rows", "change at most", title="Change of the score, after − before")
    for share, change in found.quantiles.items():
        table.add_row(f"{share:.0%}", f"{change:+.6f}")
    console.print(table)
    table = Table("key", "before", "after", "change", "band", title="Largest changes")
    for row in found.largest:
        table.add_row(
            Text(row.key, overflow="fold"),
            f"{row.score_before:.6f}",
            f"{row.score_after:.6f}",
            f"{row.score_after - row.score_before:+.6f}",
            row.band_before
            if row.band_before == row.band_after
            else f"{row.band_before} → {row.band_after}",
        )
    console.print(table)


def show_rules(
    use_case: "UseCase", figures: "Sequence[RuleFigures]", chosen: "Sequence[ChosenThreshold]"
) -> None:
    """Each rule with what it found, and the choices of a threshold."""
    declared = {rule.name: rule for rule in use_case.rules}
    known = {each.rule: each for each in figures}
    table = Table(
        "rule", "of a hit", "hits a row where", "nights", "hits", "precision", "recall", "newest",
        title=f"Rules of {use_case.name}",
    )  # fmt: skip
    for name in dict.fromkeys([*declared, *known]):
        rule, each = declared.get(name), known.get(name)
        of_model = {"threshold": "the model's score is at least the night's threshold"}
        of_model["decision"] = "it is not passed, for whatever reason"
        where = of_model.get(name, "no longer declared") if rule is None else rule.where
        numbers = ["", "", "", "", ""]
        if each is not None:
            shares = (each.precision, each.recall, each.newest)
            numbers = [str(each.nights), f"{each.hits:,}"]
            numbers += ["" if share is None else f"{share:.3f}" for share in shares]
        table.add_row(name, rule.action if rule else "", Text(where, overflow="fold"), *numbers)
    console.print(table)
    if not figures:
        console.print(f"nothing is measured yet: `nightshift evaluate {use_case.name}` does")
    if use_case.alerts is None:
        return
    table = Table("as_of", "version", "threshold", "before", "why", title="Thresholds")
    for each_chosen in chosen:
        before = "" if each_chosen.previous is None else f"{each_chosen.previous:.4f}"
        table.add_row(
            str(each_chosen.as_of), each_chosen.threshold_version, f"{each_chosen.threshold:.4f}",
            before, Text(each_chosen.reason, overflow="fold"),
        )  # fmt: skip
    console.print(table)


def show_certificate(certificate: "Certificate") -> None:
    """What an erasure removed, what it cannot reach, and which models cannot forget."""
    title = f"Erasure {certificate.erasure_id}, completed {certificate.completed_at:%Y-%m-%d %H:%M}"
    table = Table("place", "removed", title=title, min_width=len(title))
    for place, rows in certificate.removed.items():
        table.add_row(place, f"{rows:,}")
    console.print(table)
    if not any(certificate.removed.values()):
        console.print("found nothing: the person is in none of these places")
    for model in certificate.models_to_retrain:
        console.print(f"trained before, cannot forget: {model}; retrain", soft_wrap=True)
    for place in certificate.not_reached:
        console.print(f"not reached: {place}", soft_wrap=True)


def show_top(settings: Settings, use_case_name: str, limit: int = 10) -> None:
    """The top of ``predictions.<use_case>_latest``."""
    from nightshift.publishing.run import top_rows

    use_case = find_use_case(use_case_name)
    rows = top_rows(settings, use_case, limit)
    is_personal = any(use_case.key in load_contract(source).pii for source in SOURCES)
    table = Table(
        title=f"{use_case.table}_latest",
        caption="of an id: select predictions.pseudonym('<id>')" if is_personal else None,
    )
    scores = (use_case.score_column, *use_case.interval_columns)
    digits = 4 if use_case.objective == "binary" else 2
    short = (*use_case.row_key, "as_of", "band")
    decided = [name for name in ("decision", "rule_hits") if name in use_case.decision_columns]
    for name in (*use_case.row_key, "as_of", *scores, "band", *decided, "reasons"):
        table.add_column(name, overflow="fold", no_wrap=name in short)
    for row in rows:
        table.add_row(
            *(str(row[name]) for name in use_case.row_key),
            str(row["as_of"]),
            *(f"{row[name]:.{digits}f}" for name in scores),
            row["band"],
            *(
                Text(each if isinstance(each := row[name], str) else "\n".join(each))
                for name in decided
            ),
            Text("\n".join(_reason(reason) for reason in row["reasons"])),
        )
    console.print(table)


def _reason(reason: dict[str, Any]) -> str:
    value = "none" if reason["value"] is None else f"{reason['value']:g}"
    return f"{reason['direction']}: {reason['feature']} = {value}"


if __name__ == "__main__":
    app()
