"""A real ComfyUI server for the tests of this folder, started by the code behind run.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from playwright.sync_api import Browser

from comfy_host.client import Client, connect
from comfy_host.locate import Host, find_host
from comfy_host.server import Server, running
from end_to_end.browser import chromium

Talk = Callable[[Callable[[Client], Awaitable[Any]]], Any]


@pytest.fixture(scope="session")
def program() -> Host:
    """Return the ComfyUI that the servers of this session run."""
    return find_host()


@pytest.fixture(scope="session")
def server(program: Host) -> Iterator[Server]:
    """Run the host with this pack and the demo model for the whole session."""
    with running(program) as started:
        yield started


@pytest.fixture(scope="session")
def talk(server: Server) -> Talk:
    """Return a function that connects to the host and runs `conversation(client)`."""

    def run(conversation: Callable[[Client], Awaitable[Any]]) -> Any:
        async def connected() -> Any:
            async with connect(server.address) as client:
                return await conversation(client)

        # In a thread of its own: Playwright keeps an event loop in this one as long as a browser runs.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, connected()).result()

    return run


@pytest.fixture(scope="session")
def object_info(talk: Talk) -> dict:
    """Return the host's description of its nodes."""
    return talk(Client.object_info)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a Chromium for the tests of one file. (It keeps asyncio.run from working as long as it runs.)"""
    with chromium() as started:
        yield started
