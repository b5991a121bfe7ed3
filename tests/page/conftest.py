"""A browser, and pages in it that fail a test if they ask, log or open something they should not."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import chromium
from tests.support.page import canned, serve_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")  # its event loop must not run while other tests start theirs
def browser() -> Iterator["Browser"]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Return a function that opens an address; every request has to begin with `only`."""
    problems: list[str] = []
    contexts: list[Any] = []

    def open_address(address: str, *, only: str, clock: bool = False, **options: Any) -> "Page":
        context = browser.new_context(locale="en-US", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))

        def check(route: Any) -> None:
            if route.request.url.startswith((only, "data:")):
                route.continue_()
            else:
                problems.append(f"request: {route.request.url}")
                route.abort()

        page.route("**/*", check)
        if clock:
            page.clock.install()  # its time stands still until a test moves it
        page.goto(address)
        return page

    yield open_address
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def answers():
    return canned()


@pytest.fixture
def visit(open_page, answers):
    """Return a function that opens the page at a query."""
    with serve_page(answers) as url:
        yield lambda query="", **options: open_page(
            url + query, only=url.rsplit("/", 2)[0], **options
        )
