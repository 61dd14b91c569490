"""What goes wrong in the page is told in the service's own words, where the person looks; what was typed stays."""

import gzip
import io
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from app.http.tokens import add, new_token
from demo.service import npy
from tests.e2e.browser import SHOWN, Visit, endless, needs_browser, refused_at_first, visiting
from tests.e2e.conftest import Service

pytestmark = [pytest.mark.slow, needs_browser]

NOT_OK = r"Failed to load resource"  # what Chromium itself tells of an answer that is not 2xx
A = np.random.default_rng(0).random((20, 6), dtype=np.float32)
CALLS = re.compile(r"/(readyz|metrics|jobs|dictionaries|fit|encode)\b(?!.*\.js)")  # none for the page's own files


@pytest.fixture(scope="module")
def small(shared: Service) -> Service:
    shared.client.put("/dictionaries/small", content=npy(A[:3])).raise_for_status()
    return shared


@pytest.fixture
def visit(opened: Visit, small: Service) -> Iterator[Visit]:
    opened.forget()
    yield opened
    small.no_job_goes_on()
    opened.check(NOT_OK)


def fill(visit: Visit, content: bytes, file: str = "rows.npy", name: str = "kept", k: str = "2") -> Page:
    page = visit.page
    visit.drop(page.locator(".drop"), file, content)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Concepts").fill(k)
    return page


def start(page: Page) -> None:
    page.get_by_role("button", name="Start the fit").click()


def spoilt(value: float) -> bytes:
    bad = A.copy()
    bad[4, 2] = value
    return npy(bad)


BAD_FILES = [
    (b"\x89PNG\r\n\x1a\n" + bytes(100), "photo.png", r"."),
    (b"hello", "rows.npy", r"npy"),
    (spoilt(float("nan")), "rows.npy", r"row 4, column 2.*NaN"),
    (spoilt(-1.0), "rows.npy", r"row 4, column 2.*negative"),
    (b"1,2\n3,x\n", "rows.csv", r"line 2, column 2.*not a number"),
]


def test_a_bad_file_is_told_by_the_service(visit: Visit) -> None:
    visit.open("fit")
    for content, file, told in BAD_FILES:
        page = fill(visit, content, file)
        with page.expect_response("**/fit?*") as answer:
            start(page)
        detail = answer.value.json()["detail"]
        expect(page.get_by_role("alert").filter(has_text=detail)).to_be_visible()
        assert re.search(told, page.locator("form").inner_text(), re.DOTALL)
        assert page.get_by_label("Name").input_value() == "kept"
        expect(page.get_by_text(file)).to_be_visible()


def test_a_file_that_has_changed_since_it_was_chosen_is_told(visit: Visit, tmp_path: Path) -> None:
    """A browser sends it no more, and says of the service that it does not answer."""
    file = tmp_path / "rows.npy"
    file.write_bytes(npy(A))
    visit.page.once("filechooser", lambda chooser: chooser.set_files(file))
    page = visit.open("fit")
    page.get_by_label("Activations").click()
    expect(page.get_by_label("Activations")).to_have_value(re.compile("rows.npy"))
    page.get_by_label("Name").fill("changed")
    page.get_by_label("Concepts").fill("2")
    file.write_bytes(npy(np.repeat(A, 3, axis=0)))
    start(page)
    expect(page.get_by_role("alert").filter(has_text="it has changed since it was chosen")).to_be_visible()
    assert page.get_by_label("Name").input_value() == "changed"
    visit.page.once("filechooser", lambda chooser: choose(page, str(file)))
    page.get_by_label("Activations").click()
    expect(page.get_by_text("1.5 KiB")).to_be_visible()  # what it is by now, and not what was told before
    start(page)
    expect(page.get_by_role("link", name="Look at changed@1")).to_be_visible()


def choose(page: Page, file: str) -> None:
    """As a person does: Playwright's own `set_files` tells the page of a change where there is none."""
    session = page.context.new_cdp_session(page)
    found = session.send("Runtime.evaluate", {"expression": "document.querySelector('input[type=file]')"})
    session.send("DOM.setFileInputFiles", {"files": [file], "objectId": found["result"]["objectId"]})
    session.detach()


def test_a_bad_parameter_is_told_beside_its_field(visit: Visit) -> None:
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.url) if "/fit?" in request.url else None)
    visit.open("fit")
    page = fill(visit, npy(A), name="no name!", k="0")
    most = page.get_by_label("Most iterations")
    page.get_by_text("More parameters").click()
    most.clear()
    most.press_sequentially("5e")  # of which browsers tell as of an empty field
    start(page)
    expect(page.get_by_text("this is no number")).to_be_visible()
    expect(most).to_be_focused()
    assert asked == []
    most.fill("500")
    start(page)
    for label in ("Name", "Concepts"):
        field = page.get_by_label(label)
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field.locator("xpath=..").locator(".wrong")).not_to_be_empty()
    assert page.get_by_label("Name").input_value() == "no name!"
    page.get_by_label("Name").fill("mended")
    page.get_by_label("Concepts").fill("2")
    start(page)
    expect(page.get_by_role("link", name="Look at mended@1")).to_be_visible()


BAD_ROWS = [
    ("1, 2, 3", "6"),
    ("1, x, 3, 4, 5, 6", "x"),
    ("[1, 2", "."),
    ("-1, 2, 3, 4, 5, 6", "negative"),
    ("", "."),
]


def test_a_bad_row_is_told_by_the_service(visit: Visit) -> None:
    page = visit.open("try/small")
    for row, told in BAD_ROWS:
        page.get_by_label("Numbers, as JSON").fill(row)
        with page.expect_response("**/encode*") as answer:
            page.get_by_role("button", name="Encode", exact=True).click()
        assert 400 <= answer.value.status < 500
        alert = page.get_by_role("alert").filter(has_text=answer.value.json()["detail"])
        expect(alert).to_be_visible()
        assert told in alert.inner_text() or re.search(told, alert.inner_text())
        assert page.get_by_label("Numbers, as JSON").input_value() == row


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, A=A)
    return file.getvalue()


FILES = """() => {
    const whole = Blob.prototype.arrayBuffer;
    Blob.prototype.arrayBuffer = async function () {
        if (this.name === "slow.csv") await new Promise((resolve) => { globalThis.go = resolve; });
        if (this.name === "gone.npy") throw new DOMException("changed", "NotReadableError");
        return whole.call(this);
    };
}"""


def test_a_result_is_of_the_file_that_is_named(visit: Visit) -> None:
    """Not of one before it, and not of one that took longer to be read."""
    page = visit.open("try/small")
    zone, codes, alert = page.locator(".drop"), page.locator(".codes"), page.locator("form").get_by_role("alert")
    page.evaluate(FILES)
    for file, content, told in (
        ("complex.npy", npy(A.astype(np.complex64)), "The file cannot be read: complex.npy is an npy file of a kind"),
        ("rows.npz", _npz(), "The file cannot be read: rows.npz is neither text nor npy"),
        ("rows.csv.gz", gzip.compress(b"1,2\n"), "The file cannot be read: rows.csv.gz is neither text nor npy"),
        ("zeros.bin", bytes(64), "The file cannot be read: zeros.bin is neither text nor npy"),
        ("gone.npy", npy(A), "The file cannot be read: gone.npy"),
    ):
        visit.drop(zone, "first.npy", npy(A))
        expect(codes).to_be_visible()
        visit.drop(zone, file, content)
        expect(alert).to_contain_text(told)
        expect(codes).to_have_count(0)
        expect(page.get_by_label("Numbers, as JSON")).to_have_value("")
        page.get_by_role("button", name="Encode", exact=True).click()
        expect(alert).to_contain_text(told)
        expect(codes).to_have_count(0)
    visit.drop(zone, "slow.csv", b"1,2,3\n")
    visit.drop(zone, "soon.csv", b"1,2,3,4,5,6\n")
    expect(codes).to_be_visible()
    page.evaluate("go()")
    page.wait_for_timeout(100)
    expect(page.get_by_label("Numbers, as JSON")).to_have_value("1,2,3,4,5,6\n")
    expect(codes).to_be_visible()
    visit.drop(zone, "spoilt.npy", spoilt(float("nan")))  # whose first row is sound
    expect(codes).to_be_visible()
    page.get_by_label("Row, from 0").fill("4")
    page.get_by_role("button", name="Encode", exact=True).click()
    expect(alert).to_contain_text("row 4, column 2")
    expect(alert).not_to_contain_text("row 0")


NO_ROWS = [  # no two after each other that are told the same
    ("0,1,2,3,4,5\n1,2,3,4,5,6", "the first line is 0,1,2,…: column names, as pandas writes them?"),
    ("1,5;2,5;3,5", "commas part numbers here: write 1.5 for 1,5"),
    ("0;1;2\n1;2;3", "column names"),
    ("1,5 2,5 3,5", "write 1.5 for 1,5"),
]


def test_what_would_be_read_as_other_numbers_is_refused(visit: Visit) -> None:
    page = visit.open("try/small")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/encode" in request.url else None)
    for text, told in NO_ROWS:
        page.get_by_label("Numbers, as JSON").fill(text)
        page.get_by_role("button", name="Encode", exact=True).click()
        expect(page.get_by_role("alert").filter(has_text=told)).to_be_visible()
    assert asked == []
    page.get_by_label("Numbers, as JSON").fill("0,1,2,3,4,5")  # a row alone
    page.get_by_role("button", name="Encode", exact=True).click()
    expect(page.locator(".codes")).to_be_visible()


def test_a_fit_is_given_no_json_file(visit: Visit) -> None:
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.url) if "/fit?" in request.url else None)
    visit.open("fit")
    page = fill(visit, b"[[1, 2], [3, 4]]", "rows.JSON")
    start(page)
    expect(page.get_by_text("choose a .npy, .csv or .safetensors file")).to_be_visible()
    expect(page.get_by_label("Activations")).to_be_focused()
    assert asked == []


NOT_THERE = [
    ("dictionaries/none", "none"),
    ("dictionaries/small@0", "not a version"),
    ("dictionaries/small/concepts/9", "9"),
    ("jobs/abc", "abc"),
    ("compare/small/none", "none"),
]


def test_what_is_not_there_is_told_by_the_service(visit: Visit) -> None:
    """With a heading, which has the focus, and a title, as where nothing is wrong."""
    page = visit.open()
    for view, told in NOT_THERE:
        page.evaluate("(view) => { location.hash = `#/${view}`; }", view)
        expect(page.get_by_role("alert").filter(has_text=told)).to_be_visible()
        heading = page.get_by_role("heading", level=1)
        expect(heading).to_be_focused()
        expect(page).to_have_title(f"{heading.inner_text()} · dictserve")


def test_an_address_leads_to_what_it_names(visit: Visit) -> None:
    """The id of a job is one, and no way to something else."""
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.url))
    page = visit.page
    page.goto(f"{visit.url}/#/jobs/..%2Fdictionaries%2Fsmall")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert f"{visit.url}/dictionaries/small" not in asked
    assert f"{visit.url}/jobs/..%2Fdictionaries%2Fsmall" in asked


def a_proxys(status: int, **headers: str) -> Callable[[Route], None]:
    """Answers that a proxy makes by itself."""
    html = "<!doctype html><title>nginx</title>"
    return lambda route: route.fulfill(status=status, content_type="text/html", headers=headers, body=html)


@pytest.mark.parametrize("status", [200, 404, 502])
def test_what_a_proxy_says_does_not_stay_in_the_view_of_the_service(
    visit: Visit, small: Service, status: int
) -> None:
    """Neither when it comes first nor when it comes between."""
    told = "Trying again in" if status == 502 else "no answer of the service"
    small.ended(small.fit(A, name="seen", nb_concepts=2))
    page = visit.page
    page.route(CALLS, a_proxys(status))
    page.goto(f"{visit.url}/#/service")
    for _ in range(2):
        expect(page.get_by_text(told).first).to_be_visible()
        assert "Unexpected token" not in page.locator("body").inner_text()
        page.unroute(CALLS)
        expect(page.get_by_text("ready: one worker")).to_be_visible()
        expect(page.get_by_role("link", name="seen@1").first).to_be_visible()
        expect(page.get_by_text(told)).to_have_count(0)
        page.route(CALLS, a_proxys(status))
    page.unroute(CALLS)


@pytest.mark.parametrize("status", [200, 204, 304])
def test_what_a_proxy_says_to_an_upload_ends_it(visit: Visit, status: int) -> None:
    """Though answers of some of these statuses have no body, and to make one that has is an error."""
    page = visit.fill_endless("odd")
    page.route("**/fit?*", lambda route: route.fulfill(status=status))
    page.get_by_role("button", name="Start the fit").click()
    expect(page.get_by_role("alert").filter(has_text="no answer of the service")).to_be_visible()
    expect(page.get_by_role("button", name="Start the fit")).to_be_enabled()


def test_a_service_that_is_not_ready_is_looked_at(visit: Visit, small: Service) -> None:
    """So is one whose jobs cannot be read, whether or not they were before."""
    told = {"status": "not ready", "workers": [], "away": ["jobs", "store"]}
    later = {"title": "Not now", "detail": "ask again later"}

    def refuse() -> None:
        page.route("**/readyz", lambda route: route.fulfill(status=503, json=told, headers={"retry-after": "2"}))
        page.route("**/jobs?*", lambda route: route.fulfill(status=503, json=later, headers={"retry-after": "20"}))

    small.ended(small.fit(A, name="seen", nb_concepts=2))
    page, job = visit.page, visit.page.get_by_role("link", name="seen@").first
    refuse()
    visit.open("service")
    expect(page.get_by_text("not ready: 0 workers; the jobs' database and the object store are away")).to_be_visible()
    expect(page.get_by_text("Room in the store")).to_be_visible()
    expect(page.get_by_text("No jobs: /jobs says “ask again later”.")).to_be_visible()
    expect(page.get_by_text("0 jobs")).to_be_hidden()
    page.unroute("**/readyz")
    expect(page.get_by_text("ready: one worker", exact=True)).to_be_visible()
    page.unroute("**/jobs?*")
    expect(job).to_be_visible()
    expect(page.get_by_text("ask again later")).to_have_count(0)
    told["away"] = ["jobs"]
    refuse()
    expect(page.get_by_text("not ready: 0 workers; the jobs' database is away")).to_be_visible()
    expect(page.get_by_text("As last read: /jobs says “ask again later”.")).to_be_visible()
    expect(job).to_be_visible()


def test_what_is_no_answer_of_the_service_is_told_in_words(visit: Visit) -> None:
    page = visit.page
    for view in ("", "dictionaries/small", "dictionaries/small/concepts/0", "jobs/abc", "try", "compare"):
        page.route(CALLS, a_proxys(200))
        page.goto(f"{visit.url}/#/{view}")
        expect(page.get_by_role("alert")).to_contain_text("no answer of the service")
        assert "Unexpected token" not in page.locator("body").inner_text()
        page.unroute(CALLS)
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_text("no answer of the service")).to_have_count(0)
        expect(page.get_by_role("heading", level=1)).to_be_focused()


def test_what_is_no_answer_to_a_fit_is_told_in_words(visit: Visit, small: Service) -> None:
    visit.open("fit")
    page = fill(visit, npy(A), name="unheard")
    page.route(CALLS, a_proxys(200))
    start(page)
    expect(page.get_by_role("alert").filter(has_text="no answer of the service")).to_be_visible()
    page.unroute(CALLS)
    start(page)
    expect(page.get_by_role("link", name="Look at unheard@1")).to_be_visible()


def test_a_label_that_the_service_has_not_heard_of_is_not_called_saved(visit: Visit) -> None:
    page = visit.open("dictionaries/small/concepts/0")
    save(page, "heard")
    expect(page.get_by_text("Saved.")).to_be_visible()
    page.route(CALLS, a_proxys(200))
    save(page, "unheard")
    expect(page.get_by_role("alert").filter(has_text="no answer of the service")).to_be_visible()
    expect(page.get_by_text("Saved.")).to_have_count(0)


def test_of_two_labels_the_later_one_is_kept(visit: Visit, small: Service) -> None:
    """Though the first is still tried again when the second is given."""
    page = visit.open("dictionaries/small/concepts/0")
    sent = refused_at_first(page, "**/dictionaries/small%401")
    save(page, "first")
    expect(page.get_by_text("Trying again")).to_be_visible()
    save(page, "second")
    page.get_by_role("button", name="Try now").click()
    expect(page.get_by_role("heading", name="#0 second")).to_be_visible()
    expect(page.get_by_text("Trying again")).to_have_count(0)
    assert [told["concept_labels"]["0"] for told in sent] == ["first", "first", "second"]
    assert small.client.get("/dictionaries/small").json()["concept_labels"] == {"0": "second"}


def save(page: Page, label: str) -> None:
    page.get_by_label("Label").fill(label)
    page.get_by_role("button", name="Save").click()


def test_rates_come_back_after_a_moment_without(visit: Visit) -> None:
    page = visit.page
    for status in (200, 404):
        page.route("**/metrics", a_proxys(status))
        visit.open("service")
        expect(page.get_by_text("No rates: /metrics says “this is no answer of the service")).to_be_visible()
        page.unroute("**/metrics")
        expect(page.get_by_text(re.compile(r"[\d.]+ /s")).first).to_be_visible()
        expect(page.get_by_text("No rates")).to_have_count(0)


def test_no_rate_is_told_over_a_restart_of_the_service(visit: Visit) -> None:
    """Its counters begin anew, and a rate is not below zero."""
    told = [f"dictserve_requests_total {count}\ndictserve_rows_total {count}\n" for count in (100, 2)]
    later = a_proxys(404)
    visit.page.route("**/metrics", lambda route: route.fulfill(body=told.pop(0)) if told else later(route))
    page = visit.open("service")
    expect(page.get_by_text("No rates")).to_be_visible()  # after which the figures stay
    expect(page.get_by_text("2 since it started", exact=False).first).to_be_visible()
    assert "/s" not in page.locator(".figures").inner_text()


BROKEN_OFF = """
const whole = fetch;
let count = 0;
globalThis.fetch = async (...given) => {
    const answer = await whole(...given);
    if (count++) return answer;
    return new Response(new ReadableStream({ pull: (body) => body.error(new TypeError("network error")) }));
};
"""


def test_an_answer_that_breaks_off_is_asked_for_again(browser: Browser, small: Service) -> None:
    with visiting(browser, small.url) as visit:  # a page of its own, for it keeps the script
        visit.page.add_init_script(BROKEN_OFF)
        visit.open()
        expect(visit.page.get_by_role("link", name="small")).to_be_visible()
        visit.check(NOT_OK)


@pytest.mark.parametrize("asked", ["86400", "1e999", "-5"])
def test_nobody_waits_as_long_as_a_proxy_likes(visit: Visit, asked: str) -> None:
    """A minute at most, and nobody who would not."""
    page = visit.page
    page.route(CALLS, a_proxys(502, **{"retry-after": asked}))
    page.goto(f"{visit.url}/#/")
    expect(page.get_by_text(re.compile(r"Trying again in (60|[1-5]?\d) s"))).to_be_visible()
    page.unroute(CALLS)
    page.get_by_role("button", name="Try now").click()
    expect(page.get_by_role("link", name="small")).to_be_visible()
    expect(page.get_by_text("Trying again")).to_have_count(0)
    expect(page.get_by_role("button", name="Try now")).to_have_count(0)


def test_a_fit_need_not_wait_as_long_as_a_proxy_likes(visit: Visit) -> None:
    visit.open("fit")
    page = fill(visit, npy(A), name="prompt")
    page.route(CALLS, a_proxys(503, **{"retry-after": "86400"}))
    start(page)
    expect(page.locator("form").get_by_text(re.compile("Trying again in (60|5\\d) s"))).to_be_visible()
    page.unroute(CALLS)
    button = page.locator("form").get_by_role("button", name="Try now")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Look at prompt@1")).to_be_visible()


def test_a_token_that_was_not_given_is_not_asked_for_again_and_again(visit: Visit) -> None:
    problem = {"type": "unauthorized", "title": "A token is needed", "detail": "this needs a token", "status": 401}
    page = visit.open("service")
    expect(page.get_by_text("ready: one worker")).to_be_visible()
    needing_one = re.compile(r"/(metrics$|jobs\?)")
    page.route(needing_one, lambda route: route.fulfill(status=401, json=problem))
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert")).to_contain_text("this needs a token")
    page.wait_for_timeout(5000)  # of which it is looked at every two seconds
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.unroute(needing_one)
    give(page, "this needs a token", "ds_any")
    expect(page.get_by_text("this needs a token")).to_have_count(0)
    expect(page.get_by_text("No rates")).to_have_count(0)
    with page.expect_response("**/readyz"):
        pass  # it is looked at again


def test_a_fit_sent_while_there_is_no_connection_goes_out_when_it_is_back(visit: Visit, small: Service) -> None:
    visit.open("fit")
    page = fill(visit, npy(A), name="patient")
    visit.context.set_offline(True)
    start(page)
    expect(page.get_by_text(re.compile("the service does not answer. Trying again in"))).to_be_visible()
    assert page.get_by_label("Name").input_value() == "patient"
    visit.context.set_offline(False)
    expect(page.get_by_role("link", name="Look at patient@1")).to_be_visible()
    assert small.client.get("/dictionaries/patient").json()["versions"] == [1]


def test_a_worker_that_dies_while_one_tries_is_waited_for(visit: Visit, small: Service) -> None:
    page = visit.open("try/small")
    page.get_by_label("Numbers, as JSON").fill("1, 2, 3, 4, 5, 6")
    os.kill(small.worker_pid, signal.SIGKILL)
    page.get_by_role("button", name="Encode", exact=True).click()
    expect(page.get_by_text(re.compile("The worker .* Trying again in"))).to_be_visible()
    expect(page.get_by_text(re.compile("Relative error .*%"))).to_be_visible()
    expect(page.get_by_text("Trying again")).to_have_count(0)
    assert page.get_by_label("Numbers, as JSON").input_value() == "1, 2, 3, 4, 5, 6"


def test_a_fit_is_followed_over_a_restart_of_the_service(visit: Visit, small: Service) -> None:
    id = small.fit(endless(), name="long", nb_concepts=64, solver="mu", max_iter=100_000, tol=0)
    page = visit.open(f"jobs/{id}")
    expect(page.get_by_text(re.compile("running: iteration [1-9]"))).to_be_visible()
    small.kill()
    try:
        expect(page.get_by_text(re.compile("Trying again"))).to_be_visible()
    finally:
        small.start()  # for who comes after, too
    expect(page.get_by_text(re.compile(r"running: .*attempt 2"))).to_be_visible()
    expect(page.get_by_text("Trying again")).to_have_count(0)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("cancelled")).to_be_visible()


@pytest.mark.parametrize("part", ["charts.css", "plotly.js"])
def test_a_chart_that_could_not_be_loaded_comes_with_what_follows(small: Service, visit: Visit, part: str) -> None:
    id = small.fit(endless(), name="long", nb_concepts=64, solver="mu", max_iter=100_000, tol=0)
    visit.page.route(f"**/page/{part}", lambda route: route.abort())
    page = visit.open(f"jobs/{id}")
    expect(page.get_by_text("the charts could not be loaded; the figures are in the tables")).to_be_visible()
    visit.page.unroute(f"**/page/{part}")
    expect(page.locator(".chart .plotly svg").first).to_be_visible()
    expect(page.get_by_text("the charts could not be loaded")).to_have_count(0)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("cancelled")).to_be_visible()


def test_a_token_is_asked_for_and_what_was_done_goes_on(browser: Browser, tmp_path: Path) -> None:
    reader, writer, another = new_token(), new_token(), new_token()
    tokens = tmp_path / "tokens"
    add(tokens, "reader", ["read"], reader, {})
    add(tokens, "writer", ["read", "write"], writer, {})
    service = Service(tmp_path / "models", DICTSERVE_TOKENS_FILE=str(tokens)).start()
    try:
        with visiting(browser, service.url) as visit:
            page = visit.page
            page.goto(service.url)
            give(page, "this needs a token", reader)
            expect(page.get_by_role("heading", name="None yet")).to_be_visible()
            page.get_by_role("link", name="New fit").first.click()
            fill(visit, npy(A), name="guarded")
            start(page)
            give(page, "scope write", "ds_wrong")
            give(page, "this token is not known here", writer)
            expect(page.get_by_role("link", name="Look at guarded@1")).to_be_visible()
            page.get_by_role("link", name="Look at guarded@1").click()
            page.locator(".grid a").first.click()
            page.locator(".concept").get_by_label("Label").fill("kept over it")
            tokens.unlink()
            add(tokens, "another", ["read", "write"], another, {})  # writer's is no more
            page.get_by_role("button", name="Save").click()
            give(page, "this token is not known here", another)
            expect(page.get_by_text("Saved.")).to_be_visible()
            assert page.get_by_label("Label").input_value() == "kept over it"
            visit.check(NOT_OK)
        answer = service.client.get("/dictionaries/guarded", headers={"Authorization": f"Bearer {another}"})
        assert list(answer.json()["concept_labels"].values()) == ["kept over it"]
    finally:
        service.stop()


def test_no_token_is_asked_for_where_the_service_needs_none(visit: Visit, small: Service) -> None:
    """Behind a proxy that hands on another name, the page is one of another site to it."""

    def proxied(route: Route) -> None:
        asked, headers = route.request, {"origin": "http://dictionaries.example"}
        answer = small.client.request(asked.method, asked.url, content=asked.post_data, headers=headers)
        route.fulfill(status=answer.status_code, headers=dict(answer.headers), body=answer.content)

    page = visit.open("dictionaries/small/concepts/0")
    page.get_by_label("Label").fill("refused")
    page.get_by_role("button", name="Token").click()
    page.get_by_label("Token", exact=True).fill("ds_any")  # of another service, say
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.wait_for_selector(SHOWN)
    page.route(re.compile("/dictionaries/small%401$"), proxied)
    page.get_by_role("button", name="Save").click()
    expect(
        page.get_by_role("alert").filter(has_text="this request comes from a page of another site")
    ).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert page.get_by_label("Label").input_value() == "refused"


def give(page: Page, told: str, token: str) -> None:
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("alert")).to_contain_text(told)
    dialog.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
