"""The host's own page in Chromium: opened in one of its two renderers, kept inside the host, its errors noted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, Route, expect, sync_playwright

from comfy_host.places import HOST

RENDERERS = {"classic": False, "nodes 2.0": True}  # the names for tests, and the value of `nodes2`
TIMEOUT = 60_000  # milliseconds; the machine may be busy
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# The pack's nodes are registered last, after its scripts and those of the host have run.
READY = "!!window.app?.graph && !!window.LiteGraph?.registered_node_types['GuidedSynthesis_View']"
FIRST_GRAPH = "!!app.extensionManager.workflow.activeWorkflow"  # the page has opened a workflow by itself
TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
_OURS = "/extensions/guided_synthesis/"  # where the scripts of this pack are

_errors: WeakKeyDictionary[Page, list[str]] = WeakKeyDictionary()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium, else Playwright's own; fail the test, with what to type, if there is none."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.fail(
                "There is no Chromium; type: sudo apt install chromium, or: playwright install chromium"
            )
        # Chromium keeps a socket in its temporary folder; inside the checkout the name may be too long for one.
        surroundings = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
        surroundings["XDG_CONFIG_HOME"] = str(HOST / "cache" / "config")
        started = playwright.chromium.launch(executable_path=found, args=QUIET, env=surroundings)
        yield started
        started.close()


@contextmanager
def opened(browser: Browser, address: str, *, nodes2: bool, **settings: Any) -> Iterator[Page]:
    """Open the page of the host at `address` with an empty graph, in Nodes 2.0 or with classic nodes.

    `settings` are further settings of the page by their names, `**{"Comfy.Locale": "zh"}`.
    """
    chosen = {"Comfy.VueNodes.Enabled": nodes2, "Comfy.TutorialCompleted": True, **settings}
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    page.set_default_timeout(TIMEOUT)
    _errors[page] = []
    page.on("pageerror", lambda error: _errors[page].append(_thrown(error)))
    page.on("console", lambda line: line.type == "error" and _errors[page].append(_written(line)))
    page.route("**", lambda route: keep_inside(route, address, chosen))
    try:
        page.goto(address)
        page.wait_for_function(READY)
        assert page.evaluate("!!LiteGraph.vueNodesMode") == nodes2
        yield page
    finally:
        page.close()


def page_errors(page: Page) -> list[str]:
    """Return what went wrong in an `opened` page so far: what was thrown or written as error, and where."""
    return list(_errors[page])


def check_that_the_wheel_zooms(page: Page, there: Locator) -> None:
    """Turn the wheel over an element and wait until the graph is larger; then put it back to where tests have it."""
    scale = page.evaluate("app.canvas.ds.scale")
    there.hover()
    page.mouse.wheel(0, -100)
    page.wait_for_function("scale => app.canvas.ds.scale > scale", arg=scale)
    page.evaluate("Object.assign(app.canvas.ds, { offset: [60, 120], scale: 1 })")
    page.evaluate("app.graph.setDirtyCanvas(true, true)")


def our_errors(page: Page) -> list[str]:
    """Return those of `page_errors` that come from the scripts of this pack."""
    return [error for error in page_errors(page) if _OURS in error]


def keep_inside(route: Route, address: str, settings: dict[str, Any]) -> None:
    """Let the page talk to the host only, and keep its settings in this test."""
    url = route.request.url
    if url.startswith(f"{address}/api/settings"):
        route.fulfill(json=settings)
    elif url.startswith((address, "blob:", "data:")):
        route.continue_()
    else:
        route.abort()


def _thrown(error: Error) -> str:
    return f"{error} {error.stack}"


def _written(line: ConsoleMessage) -> str:
    return f"{line.text} {line.location}"
