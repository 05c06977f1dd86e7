"""Talks to a host as its browser page does: uploads, queues a graph, follows it, fetches the pictures."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from comfy_host.problems import Problem

Json = dict[str, Any]


class GraphError(Problem):
    """A graph failed; the text is the host's own."""


@dataclass(frozen=True)
class Picture:
    """A picture that a graph saved: which node saved it, under which name, and the file itself."""

    node: str
    filename: str
    data: bytes


@dataclass(frozen=True)
class Progress:
    """How far a node is."""

    node: str
    value: int = 0
    maximum: int = 0


Show = Callable[[Progress], None]


class Client:
    """One connection to a host. Made by `connect`."""

    def __init__(
        self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse, name: str
    ) -> None:
        self._session, self._socket, self._name = session, socket, name

    async def object_info(self) -> Json:
        """Return the host's description of all its nodes."""
        return await self._get_json("/object_info")

    async def upload(self, filename: str, data: bytes) -> str:
        """Put a picture into the host's input folder; returns the name under which graphs find it."""
        form = aiohttp.FormData({"overwrite": "true"})
        form.add_field("image", data, filename=filename, content_type="image/png")
        async with self._session.post("/upload/image", data=form) as answer:
            answer.raise_for_status()
            return (await answer.json())["name"]

    async def queue(self, prompt: Json) -> str:
        """Queue a graph; returns its id. Raises GraphError with the host's text if the host refuses it."""
        async with self._session.post("/prompt", json={"prompt": prompt, "client_id": self._name}) as answer:
            reply = await answer.json()
        # The host runs what is sound of a half-broken graph; whoever sent it wants all of it, or the error.
        if answer.status == 200 and reply.get("node_errors"):
            await self._drop(reply["prompt_id"])
        if answer.status != 200 or reply.get("node_errors"):
            raise GraphError(refusal(reply, prompt))
        return reply["prompt_id"]

    async def run(self, prompt: Json, show: Show = lambda progress: None) -> list[Picture]:
        """Run a graph to its end and return the pictures it saved. Raises GraphError with the host's text."""
        prompt_id = await self.queue(prompt)
        await self.follow(prompt_id, prompt, show)
        return await self.pictures(prompt_id, prompt)

    async def follow(self, prompt_id: str, prompt: Json, show: Show) -> None:
        """Wait for the end of a graph, telling `show` about its progress."""
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue  # live previews
            event = json.loads(message.data)
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "progress":
                show(Progress(title(prompt, data.get("node")), data["value"], data["max"]))
            elif kind == "executing" and data.get("node") is not None:
                show(Progress(title(prompt, data["node"])))
            elif kind == "execution_error":
                raise GraphError(failure(data, prompt))
            elif kind == "execution_interrupted":
                raise GraphError("The run was interrupted.")
            elif kind == "execution_success" or (kind == "executing" and data.get("node") is None):
                return
        raise GraphError("The host closed the connection during the run: it may have run out of memory.")

    async def pictures(self, prompt_id: str, prompt: Json, shown: bool = False) -> list[Picture]:
        """Fetch the pictures that a finished graph saved, and on demand those that nodes only show, in its order."""
        for _ in range(100):  # the last message comes a moment before the history entry
            history = await self._get_json(f"/history/{prompt_id}")
            if prompt_id in history:
                break
            await asyncio.sleep(0.05)
        else:
            raise GraphError("The host reported the end of the run but keeps no record of it.")
        found = []
        outputs = history[prompt_id]["outputs"]
        order = list(prompt)
        for node in sorted(outputs, key=order.index):
            for item in outputs[node].get("images", ()):
                if shown or item["type"] == "output":
                    found.append(Picture(node, item["filename"], await self._view(item)))
        return found

    async def interrupt(self) -> None:
        """Stop the graph that runs at the moment."""
        async with self._session.post("/interrupt", json={}) as answer:
            answer.raise_for_status()

    async def _drop(self, prompt_id: str) -> None:
        for path, data in (("/queue", {"delete": [prompt_id]}), ("/interrupt", {"prompt_id": prompt_id})):
            async with self._session.post(path, json=data) as answer:
                answer.raise_for_status()

    async def _view(self, item: Json) -> bytes:
        async with self._session.get("/view", params=item) as answer:
            answer.raise_for_status()
            return await answer.read()

    async def _get_json(self, path: str) -> Json:
        async with self._session.get(path) as answer:
            answer.raise_for_status()
            return await answer.json()


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Client]:
    """Connect to the host at `address` (http://...)."""
    name = uuid.uuid4().hex
    patient = aiohttp.ClientTimeout(total=None, sock_connect=30)
    async with aiohttp.ClientSession(address, timeout=patient) as session:
        async with session.ws_connect("/ws", params={"clientId": name}, max_msg_size=0) as socket:
            yield Client(session, socket, name)


def title(prompt: Json, node: str | None) -> str:
    """Return what the graph calls a node."""
    entry = prompt.get(str(node), {})
    return entry.get("_meta", {}).get("title") or entry.get("class_type") or f"node {node}"


def refusal(reply: Json, prompt: Json) -> str:
    """Put the host's refusal of a graph into one text."""
    lines = []
    for node, errors in (reply.get("node_errors") or {}).items():
        for error in errors["errors"]:
            text = ": ".join(filter(None, (error["message"], error.get("details"))))
            lines.append(f"{errors.get('class_type', '')} ({title(prompt, node)}, node {node}): {text}")
    general = reply.get("error") or {}
    if isinstance(general, str):
        general = {"message": general}
    return "; ".join(lines) or ": ".join(filter(None, (general.get("message"), general.get("details"))))


def failure(data: Json, prompt: Json) -> str:
    """Put the host's report of an exception in a node into one text."""
    where = f"{data.get('node_type')} ({title(prompt, data.get('node_id'))}, node {data.get('node_id')})"
    return f"{where}: {data.get('exception_type')}: {str(data.get('exception_message')).strip()}"
