"""The API's own page, /docs, in a real browser: what it shows is executed as it stands there."""

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.browser import Visit, needs_browser
from tests.e2e.conftest import Service

pytestmark = [pytest.mark.slow, needs_browser]


def test_what_is_shown_is_executed_as_it_stands(opened: Visit, shared: Service) -> None:
    """Beside a JSON body none of the parameters of other bodies is sent; the answers can be read."""
    opened.page.goto(f"{shared.url}/docs")
    for path, status, told in (("/fit", 202, "state"), ("/encode", 200, "codes"), ("/decode", 200, "activations")):
        operation = opened.page.locator(".opblock").filter(
            has=opened.page.locator(f".opblock-summary-path[data-path='{path}']")
        )
        operation.locator(".opblock-summary-control").click()
        operation.get_by_role("button", name="Try it out").click()
        with opened.page.expect_response(re.compile(f"{path}([?].*)?$")) as answer:
            operation.get_by_role("button", name="Execute").click()
        assert answer.value.status == status, answer.value.text()
        assert told in answer.value.json()
        expect(operation.locator(".live-responses-table .highlight-code").first).to_contain_text(f'"{told}"')
        if path == "/fit":
            assert shared.ended(answer.value.json()["id"])["state"] == "succeeded"
        operation.locator(".opblock-summary-control").click()
    opened.check()
