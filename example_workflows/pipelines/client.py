"""Run a workflow on any ComfyUI and fetch its pictures. docs/api.md shows how; needs `requests` only: copy it."""

import time

import requests


def run(host: str, workflow: dict) -> list[tuple[str, bytes]]:
    """Return name and content of every picture that `workflow` (API format) saves on the ComfyUI at `host`.

    Raises RuntimeError with the host's words if it refuses the workflow or fails on the way, and
    requests.RequestException if the host is gone, or came back without the job.
    """
    # Without a client_id ComfyUI 0.3.75 says nothing of what it has in its cache.
    reply = requests.post(f"{host}/prompt", json={"prompt": workflow, "client_id": "me"}, timeout=60).json()
    for node, wrong in reply["node_errors"].items():  # the first one says enough
        raise RuntimeError("node {}: {message}: {details}".format(node, **wrong["errors"][0]))
    if "error" in reply:  # of the workflow as a whole
        raise RuntimeError("{message}: {details}".format(**reply["error"]))
    while reply["prompt_id"] in get(f"{host}/queue").text:
        time.sleep(0.3)
    for record in get(f"{host}/history/{reply['prompt_id']}").json().values():  # one, or none
        event, data = record["status"]["messages"][-1]
        if event != "execution_success":
            raise RuntimeError(f"node {data['node_id']}: {data.get('exception_message', event)}")
        saved = [f for n in record["outputs"].values() for f in n.get("images", ()) if f["type"] == "output"]
        return [(file["filename"], get(f"{host}/view", file).content) for file in saved]
    raise requests.ConnectionError("the host lost the job: it was started anew, or its queue was cleared")


def get(url: str, params: dict | None = None) -> requests.Response:
    """Return the host's answer; raise requests.HTTPError if that is an error."""
    (answer := requests.get(url, params, timeout=60)).raise_for_status()
    return answer
