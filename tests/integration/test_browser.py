"""Airflow's web UI in a real browser: what an operator does, as the README's pictures show it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from nightshift.services import run as services

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

NIGHT = "2025-12-31"
BACKFILLED = ("2025-12-18", "2025-12-19", "2025-12-20")
BAD_DAY, NIGHT_AFTER_BAD_DAY = "2026-01-22", "2026-01-23"
RUN_MS, PAGE_MS = 600_000, 60_000


def chromium() -> str | None:
    """The system's own; Playwright's are not installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


# no longer than the module: while Playwright runs, its event loop is this thread's
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = chromium()
    if executable is None:
        pytest.skip("there is no Chromium: `scripts/chromium` installs it, as root on Debian")
    with sync_playwright() as playwright:
        # in a container there is no user namespace for a sandbox, and the pages are ours
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, stack: Any) -> Iterator[Page]:
    """A page, logged in by the form."""
    context = browser.new_context(
        viewport={"width": 1400, "height": 900}, locale="en-GB", timezone_id="UTC"
    )
    context.set_default_timeout(PAGE_MS)
    expect.set_options(timeout=PAGE_MS)
    page = context.new_page()
    url, username, password = services.airflow_login(stack.settings)
    page.goto(url)
    page.get_by_label("Username").fill(username)
    page.get_by_label("Password").fill(password or "")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("link", name="Dags", exact=True)).to_be_visible()
    yield page
    context.close()


@pytest.fixture
def picture(request: pytest.FixtureRequest, page: Page) -> Any:
    """Keeps what the page shows, where ``make screenshots`` asks for it."""
    folder = request.config.getoption("--screenshots")

    def keep(name: str, height: int = 900) -> None:
        if folder is None:
            return
        page.set_viewport_size({"width": 1400, "height": height})
        expand = page.get_by_role("button", name="Expand all task groups")
        if expand.count() and expand.is_enabled():
            expand.click()
        fit = page.locator(".react-flow__controls-fitview")
        if fit.count():
            fit.click()
        page.mouse.move(1399, 0)
        page.wait_for_timeout(1500)  # for what is animated
        page.screenshot(path=Path(folder) / f"{name}.png")

    return keep


def open_task(page: Page, stack: Any, run_id: str, task_id: str, tab: str = "") -> None:
    page.goto(f"{stack.url}/dags/nightly/runs/{quote(run_id)}/tasks/{task_id}{tab}")
    expect(page.get_by_role("heading", name=task_id)).to_be_visible()


def test_a_night_is_triggered_by_the_form_and_tells_its_result(
    page: Page, stack: Any, picture: Any
) -> None:
    page.goto(f"{stack.url}/dags/nightly")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog")
    form.locator("#element_as_of").fill(NIGHT)
    picture("trigger-form", 750)
    form.get_by_role("button", name="Advanced Options").click()
    form.locator("input[name=dagRunId]").fill("by-form")
    form.get_by_role("button", name="Trigger").click()
    expect(form).to_be_hidden()

    page.goto(f"{stack.url}/dags/nightly/runs/by-form")
    header = page.get_by_text("by-form").locator("xpath=ancestor::*[2]").last
    expect(header.get_by_text("Success")).to_be_visible(timeout=RUN_MS)

    assert set(stack.tasks("by-form").values()) == {"success"}
    rows = f"{stack.published()[NIGHT]:,} rows"
    picture("nightly-grid", 900)
    page.get_by_role("button", name="Show Graph").click()
    page.get_by_role("button", name="Collapse Details Panel").click()
    expect(page.get_by_test_id("rf__wrapper").get_by_text("publish", exact=True)).to_be_visible()
    picture("nightly-graph", 600)
    page.get_by_role("button", name="Show Grid").click()
    open_task(page, stack, "by-form", "churn.score", "/details")
    expect(page.get_by_text(rows).first).to_be_visible()
    picture("task-note", 700)
    # by its address: the menu has a link of that name too, and is there before the task's links
    page.locator("a[href$='/mlflow/#/models/churn/versions/1']").click()
    expect(page.get_by_text("Registered At").first).to_be_visible()
    assert page.url.endswith("/mlflow/#/models/churn/versions/1")
    open_task(page, stack, "by-form", "quality.check_landed", "/details")
    page.get_by_role("link", name="Quality results").click()
    expect(page.get_by_text("price_is_usual").first).to_be_visible()


def test_assets_show_what_predictions_are_made_of(page: Page, stack: Any) -> None:
    _, answer = stack.call("GET", "/assets?name_pattern=predictions/churn")
    (asset,) = answer["assets"]
    page.set_viewport_size({"width": 4000, "height": 3000})  # what is outside is not drawn
    page.goto(f"{stack.url}/assets/{asset['id']}")
    page.get_by_text("Task Dependencies").click()
    graph = page.get_by_test_id("rf__wrapper")
    page.locator(".react-flow__controls-fitview").click()
    for name in ("landing/order_lines", "churn.score", "predictions/churn"):
        expect(graph.get_by_text(name).first).to_be_visible()


def test_a_backfill_of_three_dates_is_made_and_watched(
    page: Page, stack: Any, picture: Any
) -> None:
    page.goto(f"{stack.url}/dags/nightly")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog").first
    form.get_by_text("Backfill", exact=True).click()
    for day in (BACKFILLED[0], BACKFILLED[-1]):
        form.get_by_text("Select date and time").first.click()
        page.get_by_placeholder("YYYY/MM/DD").fill(day.replace("-", "/"))
        page.get_by_placeholder("HH:mm").fill("00:00")
        page.keyboard.press("Escape")
        expect(page.get_by_placeholder("YYYY/MM/DD")).to_have_count(0)
    form.get_by_role("button", name="Run Backfill").click()
    expect(form).to_be_hidden()

    runs = [f"backfill__{day}T00:00:00+00:00" for day in BACKFILLED]
    page.goto(f"{stack.url}/dags/nightly/runs?run_type=backfill")
    expect(page.get_by_role("row").filter(has_text="Success")).to_have_count(
        len(runs), timeout=RUN_MS
    )

    assert [stack.wait(run_id) for run_id in runs] == ["success"] * 3
    published = stack.published()
    assert all(published[day] > 100 for day in BACKFILLED)
    assert not {"2025-12-17", "2025-12-21"} & published.keys()
    picture("backfill-runs", 600)


def test_a_failed_check_is_red_and_its_note_says_what_to_do(
    page: Page, stack: Any, picture: Any
) -> None:
    status, answer = stack.trigger("bad-prices", conf={"as_of": NIGHT_AFTER_BAD_DAY})
    assert status == 200, answer
    page.goto(f"{stack.url}/dags/nightly/runs/bad-prices")
    failed = page.get_by_role("row").filter(has_text="quality.check_landed")
    expect(failed.get_by_text("Failed", exact=True)).to_be_visible(timeout=RUN_MS)
    assert stack.wait("bad-prices") == "failed"
    assert NIGHT_AFTER_BAD_DAY not in stack.published()

    open_task(page, stack, "bad-prices", "quality.check_landed", "/details")
    cause = f"card_transactions landed {BAD_DAY}, column amount, amount_in_range"
    expect(page.get_by_text(re.compile(cause)).first).to_be_visible()
    picture("failed-check", 700)
    page.get_by_role("button", name="Edit note").click()
    note = page.get_by_role("dialog")
    expect(note.get_by_text("What to do:")).to_be_visible()
    expect(note.get_by_text(re.compile("look at the rows that are named"))).to_be_visible()
