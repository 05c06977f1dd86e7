"""A real ComfyUI server for the tests of this folder, started by the code behind run.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from comfy_host.client import Client, connect
from comfy_host.locate import find_host
from comfy_host.server import Server, running

Talk = Callable[[Callable[[Client], Awaitable[Any]]], Any]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Run the host with this pack and the demo model for the whole session."""
    with running(find_host()) as started:
        yield started


@pytest.fixture(scope="session")
def talk(server: Server) -> Talk:
    """Return a function that connects to the host and runs `conversation(client)`."""

    def run(conversation: Callable[[Client], Awaitable[Any]]) -> Any:
        async def connected() -> Any:
            async with connect(server.address) as client:
                return await conversation(client)

        return asyncio.run(connected())

    return run


@pytest.fixture(scope="session")
def object_info(talk: Talk) -> dict:
    """Return the host's description of its nodes."""
    return talk(Client.object_info)
