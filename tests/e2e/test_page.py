"""The page in a real browser: each of its jobs done as a person would, how fast it is, and who can use it."""

import base64
import io
import json
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
import safetensors.numpy
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FilePayload, Locator, Page, Route, expect
from sklearn.datasets import load_digits

from app.schemas import FitParameters, FitRequest
from app.worker.messages import Solver
from demo.digits import split_digits
from demo.service import npy
from tests.e2e.browser import SHOWN, Visit, endless, needs_browser, received, refused_at_first, slow_line
from tests.e2e.conftest import Service

pytestmark = [pytest.mark.slow, needs_browser]

MOST_BYTES = 1_500_000
# What is told is meant to be 1 s for a view and 100 ms for an act; what is held to is what no busy machine explains.
BUSY_MS = 20_000
VIEWS = {
    "dictionaries": "",
    "fit": "fit",
    "dictionary": "dictionaries/digits@1",
    "concept": "dictionaries/digits@1/concepts/3",
    "a picture": "dictionaries/pictures/concepts/2",
    "try": "try/pictures",
    "compare": "compare/digits@1/digits@2",
    "service": "service",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With a data directory."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "data").mkdir()
    service = Service(folder / "models", DICTSERVE_DATA_DIR=str(folder / "data")).start()
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="module")
def filled(shared: Service) -> Service:
    """A service with two versions of one dictionary, and one whose rows are images."""
    fitted_on, _ = split_digits()
    images = load_digits().data.astype(np.float32)
    for name, k, seed, A in (("digits", 24, 0, fitted_on), ("digits", 24, 1, fitted_on), ("pictures", 16, 0, images)):
        assert shared.ended(shared.fit(A, name=name, nb_concepts=k, seed=seed))["state"] == "succeeded"
    labels = {"concept_labels": {"3": "loop", "5": "upper stroke"}}
    shared.client.patch("/dictionaries/digits@1", json=labels).raise_for_status()
    return shared


@pytest.fixture
def visit(opened: Visit, filled: Service) -> Iterator[Visit]:
    opened.forget()
    yield opened
    filled.no_job_goes_on()
    opened.check()


# -- its jobs -----------------------------------------------------------------------------------------------


def test_a_newcomer_fits_looks_and_labels(visit: Visit, filled: Service) -> None:
    activations, _ = split_digits()
    begun = time.monotonic()
    page = visit.open()
    page.get_by_role("link", name="New fit").first.click()
    visit.drop(page.locator(".drop"), "activations.npy", npy(activations))
    page.get_by_label("Name").fill("first")
    page.get_by_label("Concepts").fill("32")
    page.get_by_role("button", name="Start the fit").click()
    expect(page.get_by_text("succeeded")).to_be_visible()
    page.get_by_role("link", name="Look at first@1").click()
    expect(page.get_by_text("Relative error", exact=True)).to_be_visible()
    expect(page.locator(".chart .main-svg").first).to_be_visible()
    page.locator(".grid a").first.click()
    page.locator(".concept").get_by_label("Label").fill("the first one")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status").get_by_text("Saved.")).to_be_visible()
    seconds = time.monotonic() - begun
    labels = filled.client.get("/dictionaries/first").json()["concept_labels"]
    assert list(labels.values()) == ["the first one"]
    filled.client.delete("/dictionaries/first").raise_for_status()
    print(f"\nfrom the open page to a fitted, inspected, labelled dictionary: {seconds:.1f} s")
    assert seconds < 180


def test_a_fit_by_keyboard_alone(visit: Visit, filled: Service) -> None:
    rows: FilePayload = {"name": "rows.csv", "mimeType": "text/csv", "buffer": b"1,0,2,0\n0,3,0,1\n1,3,2,1"}
    # before the page is there: to be told of a dialog takes the browser a moment
    visit.page.once("filechooser", lambda chooser: chooser.set_files(rows))
    page = visit.open("fit")
    _tab_to(page, page.get_by_label("Activations"))
    page.keyboard.press("Space")
    expect(page.get_by_label("Activations")).to_have_value(re.compile("rows.csv"))
    for label, text in (("Name", "keys"), ("Concepts", "2")):
        _tab_to(page, page.get_by_label(label))
        page.keyboard.type(text)
    page.keyboard.press("Enter")
    expect(page.get_by_text("succeeded")).to_be_visible()
    _tab_to(page, page.get_by_role("link", name="Look at keys@1"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="keys@1")).to_be_focused()
    page.go_back()
    expect(page.get_by_role("heading", name="Fit of keys")).to_be_visible()
    filled.client.delete("/dictionaries/keys").raise_for_status()


def _tab_to(page: Page, wanted: Locator) -> None:
    wanted.wait_for()
    for _ in range(30):
        if wanted.evaluate("(element) => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{wanted} is not reached by Tab")


def test_the_form_has_the_parameters_of_a_fit(visit: Visit) -> None:
    page = visit.open("fit")
    page.get_by_text("More parameters").click()
    shown = set(page.locator("form [name]").evaluate_all("(all) => all.map((one) => one.name)"))
    assert shown == set(FitRequest.model_fields) - {"data"}
    for name, parameter in FitParameters.model_fields.items():
        if not parameter.is_required():
            default = "" if parameter.default is None else str(parameter.default)
            assert page.locator(f"[name={name}]").input_value() == default, name
    assert page.locator("[name=solver] option").all_inner_texts() == list(Solver.__args__)  # type: ignore[attr-defined]


def test_a_fit_of_files_of_the_service(visit: Visit, filled: Service) -> None:
    for i in range(2):
        (filled.store.parent / "data" / f"rows {i}.npy").write_bytes(npy(np.ones((3 + i, 4), np.float32)))
    page = visit.open("fit")
    page.get_by_text("More parameters").click()
    page.get_by_label("Name").fill("of-files")
    page.get_by_label("Concepts").fill("2")
    page.get_by_label("Epochs").fill("1")
    page.get_by_label("Files of the service").fill("../rows 1.npy")
    page.get_by_role("button", name="Start the fit").click()
    expect(page.get_by_label("Files of the service")).to_have_attribute("aria-invalid", "true")
    visit.errors.clear()  # of the refusal, which browsers log
    page.get_by_label("Files of the service").fill("rows 1.npy\n\nrows [0].npy\n")
    page.get_by_role("button", name="Start the fit").click()
    expect(page.get_by_text("succeeded")).to_be_visible()
    told = filled.client.get("/dictionaries/of-files").json()
    assert told["data"]["files"] == [{"name": "rows 1.npy", "rows": 4}, {"name": "rows 0.npy", "rows": 3}]
    assert told["parameters"]["epochs"] == 1
    filled.client.delete("/dictionaries/of-files").raise_for_status()


def test_a_file_and_files_are_one_too_many(visit: Visit) -> None:
    page = visit.open("fit")
    visit.drop(page.locator(".drop"), "rows.csv", b"1,0\n0,3\n")
    page.get_by_text("More parameters").click()
    page.get_by_label("Files of the service").fill("*.npy")
    page.get_by_role("button", name="Start the fit").click()
    expect(page.get_by_label("Files of the service")).to_be_focused()
    expect(page.get_by_text("a file from here is chosen, too")).to_be_visible()


def test_a_fit_under_way_is_followed_and_cancelled(visit: Visit) -> None:
    page = visit.fill_endless("long")
    page.get_by_label("Most iterations").fill("100000")
    page.get_by_role("button", name="Start the fit").click()
    expect(page.get_by_text(re.compile(r"running: iteration [1-9].* to go"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Loss .* from .* down to"))).to_be_visible()
    ticks = page.locator(".chart .ytick text").first
    expect(ticks).to_be_visible()
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        visit.hide(True)
    with page.expect_request(re.compile("/jobs/[^/]+$")), page.expect_request("**/events") as again:
        visit.hide(False)
    assert re.fullmatch(r"1-[1-9]\d*", again.value.headers["last-event-id"])
    expect(page.get_by_text("The connection was lost")).to_have_count(0)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("cancelled")).to_be_visible()
    page.get_by_role("link", name="Back to the form").click()
    assert page.get_by_label("Name").input_value() == "long"
    expect(page.get_by_text("long.npy")).to_be_visible()


def test_a_file_on_its_way_is_told_of_and_ends_with_the_view(visit: Visit, filled: Service) -> None:
    page = visit.fill_endless("slow")
    with slow_line(page, bytes_a_second=100_000):  # for a file of 1 MB
        page.get_by_role("button", name="Start the fit").click()
        expect(page.get_by_role("button", name=re.compile(r"Sending… [1-9]\d? %"))).to_be_disabled()
        share = page.get_by_role("progressbar", name="Share of the file that has been sent")
        expect(share).to_be_visible()
        assert 0 < share.evaluate("bar => bar.value") < 1
        with page.expect_event("requestfailed", lambda request: "/fit?" in request.url):
            page.get_by_role("link", name="Service").click()
    expect(page.get_by_role("heading", name="Service")).to_be_visible()
    assert all(job["name"] != "slow" for job in filled.client.get("/jobs").json()["jobs"])
    page.get_by_role("link", name="New fit").click()
    page.get_by_label("Most iterations").fill("1")
    page.get_by_role("button", name="Start the fit").click()
    expect(page.get_by_role("link", name="Look at slow@1")).to_be_visible()


def test_a_fit_is_told_as_its_events_tell_of_it(visit: Visit, filled: Service) -> None:
    """One that waits for its turn is not called running; of thousands of losses not each is kept and drawn."""
    job = filled.job(filled.client.get("/jobs").json()["jobs"][0]["id"])
    job |= {"id": "told", "state": "queued", "version": None, "attempts": 0, "loss_history": []}
    job["progress"] |= {"iteration": 0, "loss": None}
    many = range(1, 3001)
    running = job["progress"] | {"state": "running"}
    events = [("progress", f"1-{i}", running | {"iteration": i, "loss": 1e6 / i}) for i in many]
    held: list[Route] = []
    visit.page.route("**/jobs/told", lambda route: route.fulfill(json=job))
    visit.page.route("**/jobs/told/events", lambda route: held.append(route))
    page = visit.open("jobs/told")
    for told, shown in (
        ([("progress", "0-0", running | {"state": "queued"})], "queued: it waits for its turn"),
        (events, "running: iteration 3 000"),
        ([(*events[-1][:2], events[-1][2] | {"state": "queued"})], "queued: it waits for its turn"),
        ([("end", "end", job | {"state": "cancelled"})], "cancelled"),
    ):
        drawn = page.evaluate_handle(
            """() => {
                const drawn = { times: 0 };
                const count = () => { drawn.times += 1; };
                new MutationObserver(count).observe(document.querySelector("figcaption"), { childList: true });
                return drawn;
            }"""
        )
        body = "".join(f"event: {kind}\nid: {id}\ndata: {json.dumps(data)}\n\n" for kind, id, data in told)
        _held(page, held).fulfill(body=body, content_type="text/event-stream")
        if told is events:
            expect(page.get_by_text("at iteration 3000")).to_be_visible()
            expect(page.locator(".chart .main-svg").first).to_be_visible()
            assert page.locator(".chart").evaluate("(it) => it.data[0].x.length") <= 500
            assert drawn.evaluate("(drawn) => drawn.times") < 30
        if shown != "cancelled":
            page.get_by_role("button", name="Try now").click()  # after a break of the connection
        expect(page.get_by_text(shown)).to_be_visible()
    expect(page.get_by_role("link", name="Back to the form", exact=True)).to_be_visible()


def test_dictionaries_are_sorted_and_filtered(visit: Visit) -> None:
    page = visit.open()
    page.get_by_label("Filter dictionaries").fill("i")
    names = page.locator("tbody td:first-child")
    page.get_by_role("button", name="Concepts").click()
    assert names.all_inner_texts() == ["digits", "pictures"]
    expect(page.get_by_role("columnheader", name="Concepts")).to_have_attribute("aria-sort", "descending")
    page.get_by_role("button", name="Concepts").click()
    assert names.all_inner_texts() == ["pictures", "digits"]
    page.get_by_label("Filter dictionaries").fill("dig")
    assert names.all_inner_texts() == ["digits"]
    page.get_by_role("link", name="digits").click()
    expect(page.get_by_role("heading", name="digits@2")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Dictionaries")).to_be_visible()


def test_a_dictionary_is_looked_at(visit: Visit, filled: Service) -> None:
    page = visit.open("dictionaries/digits@1")
    record = filled.client.get("/dictionaries/digits@1").json()
    error = float(page.locator(".figures .value").first.inner_text().rstrip(" %"))
    assert error == pytest.approx(100 * record["metrics"]["relative_error"], rel=0.01)
    expect(page.get_by_role("img", name=re.compile("Energy of the concepts"))).to_be_visible()
    page.get_by_text("The same as a table").first.click()
    expect(page.get_by_role("region", name="loss by iteration")).to_be_visible()
    page.get_by_role("button", name="Draw the map").click()
    expect(page.get_by_role("img", name=re.compile("Cosines of 24 concepts"))).to_be_visible()
    cards = page.locator(".grid a")
    assert cards.count() == 24
    page.get_by_label("Label or number").fill("stroke")
    assert cards.count() == 1
    page.get_by_label("Label or number").fill("")
    page.get_by_label("Show").select_option("labelled")
    assert cards.count() == 2
    with page.expect_download() as download:
        page.get_by_role("button", name="Download npy").click()
    D = np.load(download.value.path())
    assert D.shape == (24, 512)


def test_a_dictionary_is_labelled_and_deleted(visit: Visit, filled: Service) -> None:
    filled.client.put("/dictionaries/brief", json={"data": [[1, 0], [0, 1]]}).raise_for_status()
    page = visit.open("dictionaries/brief")
    page.get_by_label("Label", exact=True).fill("team")
    sent = refused_at_first(page, "**/dictionaries/brief%401")
    for text in ("visoin", "vision"):  # the second while the first is tried again
        page.get_by_label("Text", exact=True).fill(text)
        page.get_by_role("button", name="Set").click()
        expect(page.get_by_text("Trying again")).to_be_visible()
    page.get_by_role("button", name="Try now").click()
    expect(page.get_by_label("Label", exact=True)).to_have_value("")
    assert [told["labels"]["team"] for told in sent] == ["visoin", "visoin", "vision"]
    page.get_by_role("button", name="Remove the label team").wait_for()
    visit.errors.clear()  # of the refusal, which browsers log
    assert filled.client.get("/dictionaries/brief").json()["labels"] == {"team": "vision"}
    page.get_by_role("button", name="Delete…").click()
    page.evaluate("location.hash = '#/'")
    expect(page.get_by_role("heading", name="Dictionaries")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.go_back()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert filled.client.get("/dictionaries/brief").status_code == 200
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("heading", name="Dictionaries")).to_be_visible()
    assert filled.client.get("/dictionaries/brief").status_code == 404


@pytest.mark.parametrize("key", ["Escape", "Enter"])  # of which the second is for the button that has the focus
def test_a_question_gives_the_focus_back(visit: Visit, key: str) -> None:
    page = visit.open("dictionaries/digits@1")
    button = page.get_by_role("button", name="Delete…")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    page.wait_for_timeout(100)  # in which the browser notices that what had the focus is disabled
    page.keyboard.press(key)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(button).to_be_focused()


def test_who_draws_a_map_by_keyboard_goes_on_from_there(visit: Visit, filled: Service) -> None:
    page = visit.open("dictionaries/digits@1")
    held: list[Route] = []
    page.route("**/weights", lambda route: held.append(route))
    button = page.get_by_role("button", name="Draw the map")
    button.focus()
    page.keyboard.press("Enter")
    _held(page, held).fulfill(status=404, json={"detail": "it is gone", "title": "No such dictionary"})
    expect(page.get_by_role("alert").filter(has_text="it is gone")).to_be_visible()
    expect(button).to_be_focused()
    visit.errors.clear()  # of the refusal, which browsers log
    page.keyboard.press("Enter")
    _held(page, held).continue_()
    drawn = page.get_by_role("img", name=re.compile("Cosines of 24 concepts"))
    expect(drawn).to_be_visible()
    assert drawn.evaluate("(it) => document.activeElement !== document.body && document.activeElement.contains(it)")
    expect(page.get_by_role("alert").filter(has_text="it is gone")).to_have_count(0)
    page.keyboard.press("Tab")
    expect(drawn).to_be_focused()
    for key in ("ArrowUp", "ArrowDown", "Shift+ArrowRight", "ArrowLeft"):  # of which the first meets the edge
        page.keyboard.press(key)
    told = page.get_by_text("#1 and #9: ")
    expect(told).to_be_visible()
    weights = filled.client.get("/dictionaries/digits@1/weights", headers={"accept": "application/x-npy"}).content
    unit = [row / np.linalg.norm(row) for row in np.load(io.BytesIO(weights))]
    assert float(told.inner_text().rpartition(" ")[2]) == pytest.approx(unit[1] @ unit[9], abs=1e-3)


def _held(page: Page, held: list[Route]) -> Route:
    """A call that waits for its answer, for as long as the browser needs to take the focus from a disabled button."""
    while not held:
        page.wait_for_timeout(20)
    page.wait_for_timeout(100)
    return held.pop()


def test_a_seed_is_told_to_the_last_digit(visit: Visit, filled: Service) -> None:
    """JavaScript's numbers have 53 bits, seeds 63."""
    seed = 2**63 - 1
    (filled.store.parent / "data" / "seeded.npy").write_bytes(npy(np.ones((3, 4), np.float32)))
    page = visit.open("fit")
    page.get_by_text("More parameters").click()
    for label, text in (
        ("Name", "seeded"),
        ("Concepts", "1"),
        ("Seed", str(seed)),
        ("Files of the service", "seeded.npy"),
    ):
        page.get_by_label(label).fill(text)
    page.get_by_role("button", name="Start the fit").click()
    expect(page.get_by_text("succeeded")).to_be_visible()
    expect(page.get_by_text(str(seed), exact=True)).to_be_visible()
    assert filled.client.get("/dictionaries/seeded").json()["parameters"]["seed"] == seed
    page.get_by_role("link", name="Look at seeded@1").click()
    expect(page.get_by_text(str(seed), exact=True)).to_be_visible()
    filled.client.delete("/dictionaries/seeded").raise_for_status()


def test_times_and_sizes_are_rounded_once(visit: Visit) -> None:
    page = visit.open()
    times = {0.04: "0.0 s", 9.94: "9.9 s", 9.96: "10 s", 59.4: "59 s", 59.6: "1 min 0 s", 119.7: "2 min 0 s"}
    times |= {3599.4: "59 min 59 s", 3599.6: "1 h 0 min", 7260: "2 h 1 min"}
    sizes = {1023: "1023 B", 1024: "1.0 KiB", 2**20 - 1: "1.0 MiB", 10 * 2**20 - 1: "10 MiB"}
    for name, told in (("seconds", times), ("bytes", sizes)):
        shown = "async ([name, values]) => values.map((await import('./page/numbers.js'))[name])"
        assert page.evaluate(shown, [name, list(told)]) == list(told.values())


def test_a_concept_is_looked_at_and_labelled(visit: Visit, filled: Service) -> None:
    page = visit.open("dictionaries/pictures/concepts/2")
    expect(page.get_by_role("img", name=re.compile("8 by 8 pixels"))).to_be_visible()
    page.get_by_label("Width in pixels").fill("16")
    expect(page.get_by_role("img", name=re.compile("16 by 4 pixels"))).to_be_visible()
    page.get_by_label("Shown as").select_option("bars")
    expect(page.locator(".chart .main-svg").first).to_be_visible()
    rows = page.get_by_role("region", name="Table: Top rows").locator("tbody tr")
    told = filled.client.get("/dictionaries/pictures/concepts/2").json()
    assert rows.first.locator("td").first.inner_text() == str(told["top_rows"][0]["row"])
    page.get_by_label("Label").fill("a stroke")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="#2 a stroke")).to_be_visible()
    assert filled.client.get("/dictionaries/pictures").json()["concept_labels"] == {"2": "a stroke"}
    page.get_by_role("link", name="Next").click()
    expect(page.get_by_role("heading", name="#3")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="#2 a stroke")).to_be_visible()
    page.get_by_label("Label").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Removed.")).to_be_visible()


def test_concepts_of_colours_of_large_weights_and_of_any_words_are_shown(visit: Visit, filled: Service) -> None:
    """Words from right to left turn nothing around beside them, and long ones leave their neighbours as they are."""
    D = np.zeros((3, 32, 32, 3), np.float32)
    D[0, :16, :, 0] = D[0, 16:, :, 1] = 1e38  # red above green
    D[1:] = np.random.default_rng(0).random((2, 32, 32, 3))
    filled.client.put("/dictionaries/odd", content=npy(D.reshape(3, -1))).raise_for_status()
    turned = "a\u202edesrever"
    labels = {"labels": {"owner": turned}, "concept_labels": {"0": turned, "1": "w" * 500, "2": turned}}
    filled.client.patch("/dictionaries/odd", json=labels).raise_for_status()
    told = filled.client.get("/dictionaries/odd/concepts").json() | {"rows": 9, "uses": [0, 0, 9]}
    visit.page.route("**/concepts", lambda route: route.fulfill(json=told))
    page = visit.open("dictionaries/odd")
    assert page.locator(".grid bdi").all_inner_texts() == [turned, "w" * 500, turned]
    expect(page.locator("dd bdi")).to_have_text(turned)
    card = page.locator(".grid a").filter(has_text="wwww")
    assert card.evaluate("(it) => it.clientHeight") < 200
    tag, strong = (card.locator(each).bounding_box() for each in (".tag", "strong"))
    assert tag
    assert strong
    assert tag["y"] + tag["height"] <= strong["y"] + strong["height"]
    page = visit.open("dictionaries/odd/concepts/0")
    expect(page.locator("h1 bdi")).to_have_text(turned)
    assert page.locator(".grid bdi").all_inner_texts() == ["w" * 500, turned]
    column = "(it) => [...it.getContext('2d').getImageData(31, 0, 1, it.height).data]"
    assert page.locator("canvas").evaluate(column) == [255, 0, 0, 255] * 16 + [0, 255, 0, 255] * 16
    page.get_by_label("Shown as").select_option("bars")
    expect(page.locator(".chart .ytick").first).to_be_visible()
    page.get_by_role("link", name="Next").click()
    expect(page.get_by_role("heading", name="#1")).to_be_visible()
    expect(page.get_by_label("Shown as")).to_have_value("bars")
    page = visit.open("try/odd")
    page.get_by_role("button", name="Use a concept as the row").click()
    expect(page.locator(".codes bdi").first).to_have_text(turned)
    filled.client.delete("/dictionaries/odd").raise_for_status()


def test_a_row_is_tried_and_its_codes_moved(visit: Visit, filled: Service) -> None:
    page = visit.open("try/pictures")
    row = load_digits().data[7].astype(np.float32)
    page.get_by_label("Numbers, as JSON").fill(str(row.tolist()))
    page.get_by_role("button", name="Encode", exact=True).click()
    error = page.get_by_text(re.compile("Relative error .*%"))
    before = error.inner_text()
    answer = filled.client.post("/encode", json={"dictionary": "pictures", "reconstruct": True, "data": row.tolist()})
    told = answer.json()["relative_error"][0]
    assert float(re.findall(r"([\d.e-]+) %", before)[0]) == pytest.approx(100 * told, rel=0.01)
    expect(page.get_by_role("img", name="Its reconstruction", exact=True)).to_be_visible()
    slider = page.get_by_role("slider").first
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    expect(error).not_to_have_text(before)
    page.get_by_role("button", name="As encoded").click()
    expect(error).to_have_text(before)
    visit.drop(page.locator(".drop"), "rows.npy", npy(load_digits().data.astype(np.float32)))
    page.get_by_label("Row, from 0").fill("7")
    page.get_by_role("button", name="Encode", exact=True).click()
    expect(error).to_have_text(before)
    page.get_by_label("Dictionary").fill("digits@1")
    page.get_by_role("button", name="Use a concept as the row").click()
    expect(page.get_by_role("link", name="#0", exact=True)).to_be_visible()


def test_the_row_that_is_tried_is_the_one_asked_for(visit: Visit, filled: Service) -> None:
    """As the service counts them, a header being none; and a row that is not there is not another."""
    digits = load_digits().data
    header = ",".join(f"pixel{j}" for j in range(64))
    lines = "\n".join(",".join(f"{value:.6f}" for value in row) for row in np.tile(digits, (3, 1)))
    files = {
        "rows.csv": f"{header}\n{lines}\n".encode(),  # of more text than a field is given
        "rows.npy": npy(digits.astype(np.int64)),
        "half.npy": npy(digits.astype(np.float16)),
        "rows.safetensors": safetensors.numpy.save({"data": digits.copy("C"), "other": digits[::-1].copy("C")}),
        "rows.json": json.dumps(digits[:20].tolist()).encode(),
    }
    assert len(files["rows.csv"]) > 2_000_000
    page = visit.open("try/pictures")
    for name, content in files.items():
        visit.drop(page.locator(".drop"), name, content)
        for row in (13, 5):
            page.get_by_label("Row, from 0").fill(str(row))
            told = filled.client.post(
                "/encode", json={"dictionary": "pictures", "reconstruct": True, "data": digits[row].tolist()}
            ).json()
            page.get_by_role("button", name="Encode", exact=True).click()
            strongest = int(np.argmax(told["codes"][0]))
            expect(page.get_by_role("heading", name=f"Codes of row {row}", exact=True)).to_be_visible()
            expect(page.locator(".codes a").first).to_have_text(f"#{strongest}")
        for row in ("1000000", "-1", "1.5"):
            page.get_by_label("Row, from 0").fill(row)
            page.get_by_role("button", name="Encode", exact=True).click()
            expect(page.get_by_role("alert").filter(has_text="No such row")).to_be_visible()
            expect(page.locator(".codes a")).to_have_count(0)
        page.get_by_label("Row, from 0").fill("0")
    text = {"base64": base64.b64encode(digits[:3].tobytes()).decode(), "shape": [3, 64], "dtype": "float64"}
    page.get_by_label("Numbers, as JSON").fill(json.dumps({"data": text})[len('{"data": ') : -1])
    for asked, shown in (("2", "Codes of row 2"), ("3", "there are 3 rows, from 0; 3 was asked for")):
        page.get_by_label("Row, from 0").fill(asked)
        page.get_by_role("button", name="Encode", exact=True).click()
        expect(page.get_by_text(shown)).to_be_visible()


def test_numbers_of_two_bytes_are_read_to_the_last_bit(visit: Visit) -> None:
    page = visit.open()
    bits = np.arange(0, 2**16, 7, dtype=np.uint16)
    halves, wide = bits.view(np.float16), (bits.astype(np.uint32) << 16).view(np.float32)
    header = b'{"x":{"dtype":"BF16","shape":[%d],"data_offsets":[0,%d]}}' % (len(bits), bits.nbytes)
    files = {"readNpy": npy(halves), "readSafetensors": len(header).to_bytes(8, "little") + header + bits.tobytes()}
    shown = """async ([name, text]) => {
        const buffer = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
        return [...(await import("./page/arrays.js"))[name](buffer).row(0)];
    }"""
    for (name, content), expected in zip(files.items(), (halves, wide), strict=True):
        read = np.float32(page.evaluate(shown, [name, base64.b64encode(content).decode()]))
        np.testing.assert_array_equal(read, expected)


def test_a_row_of_zeros_has_no_code_in_use(visit: Visit) -> None:
    page = visit.open("try/pictures")
    page.get_by_label("Numbers, as JSON").fill(str([0] * 64))
    page.get_by_role("button", name="Encode", exact=True).click()
    expect(page.get_by_text("All 16 codes by concept; all are zero.")).to_be_visible()
    expect(page.get_by_role("img", name="Its reconstruction", exact=True)).to_be_visible()
    expect(page.get_by_role("slider")).to_have_count(0)


def test_a_fit_that_had_to_end_is_not_said_to_have_settled(visit: Visit, filled: Service) -> None:
    A = np.random.default_rng(0).random((50, 8), dtype=np.float32)
    for max_iter, ends_before in ((2, False), (10_000, True)):
        id = filled.fit(A, name="ended", nb_concepts=3, max_iter=max_iter)
        assert filled.ended(id)["state"] == "succeeded"
        visit.open(f"jobs/{id}")
        told = visit.page.get_by_text(re.compile("succeeded after .* iterations")).inner_text()
        assert ("it may not have settled" in told) != ends_before
    filled.client.delete("/dictionaries/ended").raise_for_status()


def test_a_number_that_is_missing_moves_no_others(visit: Visit) -> None:
    page = visit.open("try/pictures")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/encode" in request.url else None)
    # no two after each other that are told the same
    rows = [("1,,3", 1), ("1, 2, 3,", 3), ("1\t\t3", 1), (",2,3", 0), ('1,"",3', 1), ("1;2; ;4", 2)]
    for row, feature in rows:
        page.get_by_label("Numbers, as JSON").fill(row)
        page.get_by_role("button", name="Encode", exact=True).click()
        told = f"A number is missing: feature {feature}, counted from 0"
        expect(page.get_by_role("alert").filter(has_text=told)).to_be_visible()
    assert asked == []


def test_numbers_are_parted_as_people_part_them(visit: Visit) -> None:
    page = visit.open("try/pictures")
    for parted in (",", ", ", " , ", ";", "\t", "  ", ",\t", ",\u00a0"):
        page.get_by_label("Numbers, as JSON").fill(f" {parted.join(['2'] * 64)} ")
        with page.expect_response("**/encode?*") as answer:
            page.get_by_role("button", name="Encode", exact=True).click()
        assert answer.value.status == 200, repr(parted)
        expect(page.get_by_role("img", name="Its reconstruction", exact=True)).to_be_visible()


def test_an_answer_that_comes_late_takes_no_other_rows_place(visit: Visit) -> None:
    page = visit.open("try/pictures")
    held: list[Route] = []
    page.route("**/encode?*", lambda route: route.continue_() if held else held.append(route))
    visit.drop(page.locator(".drop"), "rows.npy", npy(load_digits().data.astype(np.int64)))
    page.get_by_label("Row, from 0").fill("1000000")
    while not held:
        page.wait_for_timeout(20)
    page.get_by_role("button", name="Encode", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="No such row")).to_be_visible()
    held[0].continue_()
    page.wait_for_timeout(500)
    expect(page.locator(".codes a")).to_have_count(0)
    expect(page.get_by_role("alert").filter(has_text="No such row")).to_be_visible()


def test_two_dictionaries_are_compared(visit: Visit, filled: Service) -> None:
    page = visit.open("compare")
    page.get_by_label("One").fill("digits@1")
    page.get_by_label("The other").fill("digits@2")
    page.keyboard.press("Enter")
    expect(page.get_by_text("24 matches")).to_be_visible()
    told = filled.client.get("/dictionaries/digits@1/compare/digits@2").json()
    shown = float(page.locator("dl .value").nth(1).inner_text())
    assert shown == pytest.approx(told["mean_cosine"], rel=1e-3)
    assert page.url.endswith("#/compare/digits@1/digits@2")


def test_the_service_is_looked_at(visit: Visit, filled: Service) -> None:
    page = visit.open("service")
    expect(page.get_by_text("ready: one worker")).to_be_visible()
    expect(page.get_by_text(re.compile(r"[\d.]+ /s")).first).to_be_visible()
    id = filled.fit(endless(), name="endless", nb_concepts=64, solver="mu", max_iter=100_000, tol=0)
    page.get_by_role("button", name="Cancel the fit of endless").click()
    expect(page.get_by_role("button", name="Remove the record of the fit of endless")).to_be_visible()
    assert filled.job(id)["state"] == "cancelled"


def test_the_record_of_a_job_that_has_ended_is_removed(visit: Visit, filled: Service) -> None:
    id = filled.fit(np.ones((4, 3), np.float32), name="over", nb_concepts=1)
    assert filled.ended(id)["state"] == "succeeded"
    visit.page.route("**/jobs?*", lambda route: route.fulfill(json=route.fetch().json() | {"next": id}))
    page = visit.open("service")
    expect(page.get_by_text("These are the newest 100.")).to_be_visible()
    row = page.get_by_role("row").filter(has=page.locator(f"a[href='#/jobs/{id}']"))
    row.get_by_role("button", name="Remove the record of the fit of over").click()
    expect(row).to_have_count(0)
    expect(page.get_by_role("region", name="Table: Jobs")).to_be_focused()  # where the button was
    assert filled.client.get(f"/jobs/{id}").status_code == 404
    assert filled.client.get("/dictionaries/over").status_code == 200
    last = """async () => {
        const { Table } = await import("./page/table.js");
        const rows = [...Array(51).keys()];
        const table = new Table({ caption: "", what: "jobs", columns: [{ value: (row) => row }], rows, page: 25 });
        table.pager.go(50);
        table.renew(rows.slice(1));
        return table.pager.told.textContent;
    }"""
    assert page.evaluate(last) == "26 to 50 of 50 jobs"
    filled.client.delete("/dictionaries/over").raise_for_status()


# -- for everybody ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_soon_there_and_everybody_can_use_it(visit: Visit, name: str) -> None:
    """It is small. No serious finding of axe in light or dark; no sideways scrolling on a small or a large screen."""
    page = visit.page
    page.emulate_media(reduced_motion="reduce")
    with received(page) as sizes:
        visit.open(VIEWS[name])
        milliseconds = page.evaluate("performance.now()")
        _settled(page, name)
        page.wait_for_timeout(200)
    print(f"{name}: there after {milliseconds:.0f} ms, {sum(sizes):,.0f} bytes")
    assert 0 < sum(sizes) <= MOST_BYTES
    assert milliseconds < BUSY_MS
    found = []
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        for finding in Axe().run(page).response["violations"]:
            found.append(f"{theme}: {finding['impact']}: {finding['help']}: {finding['nodes'][0]['html']}")
    for width in (360, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(100)
        assert _too_wide(page) <= 0, f"{name} at {width} px"
    print(*found, sep="\n")
    assert [finding for finding in found if re.match(r"\w+: (serious|critical)", finding)] == []


def _too_wide(page: Page) -> int:
    """Pixels by which it scrolls sideways."""
    wide: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wide


def test_the_longest_names_fit_a_small_screen(visit: Visit, filled: Service) -> None:
    """Of 64 letters, without a place to break them; what concepts are called may be longer still."""
    name, key, text = "n" * 64, "k" * 64, "w" * 500
    id = filled.fit(np.ones((4, 64), np.float32), name=name, nb_concepts=2)
    assert filled.ended(id)["state"] == "succeeded"
    labels = {"labels": {key: text}, "concept_labels": {"0": text}}
    filled.client.patch(f"/dictionaries/{name}", json=labels).raise_for_status()
    visit.page.set_viewport_size({"width": 360, "height": 800})
    views = {
        "dictionaries": "",
        "dictionary": f"dictionaries/{name}",
        "a concept": f"dictionaries/{name}/concepts/0",
        "job": f"jobs/{id}",
        "try": f"try/{name}",
        "compare": f"compare/{name}/{name}",
        "service": "service",
    }
    for kind, view in views.items():
        _settled(visit.open(view), kind)
        assert _too_wide(visit.page) <= 0, kind
        if kind == "dictionary":
            pairs = visit.page.get_by_role("region", name="Table: Closest pairs")
            assert pairs.evaluate("(it) => it.scrollWidth - it.clientWidth") <= 0
    visit.open(f"dictionaries/{name}").get_by_role("button", name="Delete…").click()
    dialog = visit.page.get_by_role("dialog")
    assert dialog.evaluate("(it) => it.scrollWidth - it.clientWidth") <= 0
    filled.client.delete(f"/dictionaries/{name}").raise_for_status()


def _settled(page: Page, name: str) -> None:
    """Charts drawn, a row tried."""
    if name == "try":
        page.get_by_role("button", name="Use a concept as the row").click()
        page.get_by_role("img", name="Its reconstruction", exact=True).wait_for()
    if name in ("dictionary", "concept"):
        page.locator(".chart .main-svg").first.wait_for()


def test_the_theme_is_chosen_and_kept(visit: Visit) -> None:
    page = visit.open()
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(background) != light
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()


# -- how fast -----------------------------------------------------------------------------------------------


TIMED = """async (act) => {
    const begun = performance.now();
    new Function(act)();
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    return performance.now() - begun;
}"""


def _timed(page: Page, what: str, select: str, act: str) -> float:
    """Milliseconds from a person's doing, `act` on the element, to the picture of it."""
    told: float = page.evaluate(TIMED, f"const it = document.querySelector({select!r}); {act}")
    print(f"{what}: {told:.0f} ms")
    return told


def test_ten_thousand_concepts_are_as_quick_as_ten(visit: Visit, filled: Service) -> None:
    D = np.random.default_rng(0).random((10_000, 64), dtype=np.float32)
    filled.client.put("/dictionaries/large", content=npy(D)).raise_for_status()
    told = filled.client.get("/dictionaries/large/concepts").raise_for_status().json()
    told |= {"rows": 20_000, "uses": list(range(10_000)), "largest": [1.5] * 10_000}  # as those of a fit
    told |= {"energy": D[:, 0].tolist(), "cosine": D[:, 1].tolist(), "nearest": list(range(10_000))[::-1]}
    visit.page.route("**/concepts", lambda route: route.fulfill(json=told))
    page = visit.open("dictionaries/large")
    print(f"\n10 000 concepts: there after {page.evaluate('performance.now()'):.0f} ms")
    text, order = ".filters input[type=search]", ".filters div:nth-child(3) select"
    typed = "it.dispatchEvent(new Event('input'))"
    times = [
        _timed(page, "10 000 concepts, filter by a number", text, f"it.value = '9876'; {typed}"),
        _timed(page, "10 000 concepts, no filter", text, f"it.value = ''; {typed}"),
        _timed(page, "10 000 concepts, sort", order, "it.selectedIndex = 1; it.dispatchEvent(new Event('change'))"),
        _timed(page, "10 000 concepts, next page", ".pager button:nth-child(2)", "it.click()"),
        _timed(page, "10 000 concepts, scroll", "html", "scrollTo(0, 5000)"),
    ]
    expect(page.get_by_text("73 to 144 of 10 000 concepts")).to_be_visible()
    assert max(times) < BUSY_MS
    filled.client.delete("/dictionaries/large").raise_for_status()


def test_a_thousand_dictionaries_are_as_quick_as_ten(visit: Visit, filled: Service) -> None:
    record = filled.client.get("/dictionaries").json()["dictionaries"][0]
    records = [record | {"name": f"layer{i}", "nb_concepts": i} for i in range(1000)]
    visit.page.route("**/dictionaries", lambda route: route.fulfill(json={"dictionaries": records}))
    page = visit.open()
    print(f"1 000 dictionaries: there after {page.evaluate('performance.now()'):.0f} ms")
    typed = "it.value = 'layer99'; it.dispatchEvent(new Event('input'))"
    times = [
        _timed(page, "1 000 dictionaries, sort", "thead th:nth-child(3) button", "it.click()"),
        _timed(page, "1 000 dictionaries, next page", ".pager button:nth-child(2)", "it.click()"),
        _timed(page, "1 000 dictionaries, filter", ".filters input", typed),
    ]
    expect(page.get_by_text("11 dictionaries")).to_be_visible()
    assert max(times) < BUSY_MS


def test_an_unknown_view_says_so(visit: Visit) -> None:
    """So does one whose address is malformed, or would lead out of what it names."""
    page = visit.open()
    heading = page.get_by_role("heading", name="No such view")
    for view in ("nowhere", "dictionaries/%E0%A4%A", "jobs/..", "dictionaries/%2E%2E"):
        page.evaluate("(view) => { location.hash = `#/${view}`; }", view)
        expect(heading).to_be_focused()
        expect(page).to_have_title("No such view · dictserve")
        page.get_by_role("link", name="To the dictionaries").click()
        expect(heading).to_have_count(0)
        page.wait_for_selector(SHOWN)
