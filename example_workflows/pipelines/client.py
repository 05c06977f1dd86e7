"""Run a workflow on any ComfyUI and fetch its pictures. docs/api.md shows how; needs `requests` only: copy it."""

import time

import requests
from requests.adapters import HTTPAdapter, Retry


def run(host: str, workflow: dict, until: float = float("inf"), **own: object) -> list[tuple[str, bytes]]:
    """Return name and content of every picture that `workflow` (API format) saves on the ComfyUI at `host`.

    Waits no longer than until `time.monotonic()` is `until`. `own` fields of POST /prompt are sent along.
    Raises RuntimeError with the host's words if it refuses the workflow or fails on the way, and
    requests.RequestException if the host is gone, came back without the job, or has not ended it in time.
    """
    web = requests.Session()
    # A GET is tried five times more within half a minute; a POST only if it did not get there: no job runs twice.
    web.mount(host, HTTPAdapter(max_retries=Retry(5, backoff_factor=1, status_forcelist=range(400, 600))))
    # Without a client_id ComfyUI 0.3.75 says nothing of what it has in its cache.
    reply = web.post(f"{host}/prompt", json={"prompt": workflow, "client_id": "me", **own}, timeout=60).json()
    for node, wrong in reply["node_errors"].items():  # the first one says enough
        raise RuntimeError("node {}: {message}: {details}".format(node, **wrong["errors"][0]))
    if "error" in reply:  # of the workflow as a whole
        raise RuntimeError("{message}: {details}".format(**reply["error"]))
    while reply["prompt_id"] in web.get(f"{host}/queue", timeout=60).text and time.monotonic() < until:
        time.sleep(0.3)
    for record in web.get(f"{host}/history/{reply['prompt_id']}", timeout=60).json().values():  # one, or none
        event, data = record["status"]["messages"][-1]
        if event != "execution_success":
            raise RuntimeError(f"node {data['node_id']}: {data.get('exception_message', event)}")
        saved = [f for n in record["outputs"].values() for f in n.get("images", ()) if f["type"] == "output"]
        return [(f["filename"], web.get(f"{host}/view", params=f, timeout=60).content) for f in saved]
    raise requests.ConnectionError("no result: the host was started anew, its queue cleared, or time is up")
