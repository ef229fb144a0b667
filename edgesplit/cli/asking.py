"""A request to the deployment's API, through the SSH connection to its entry; the answer as it comes.

Must not know: what is asked, how an answer is shown.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

from edgesplit.cli.workspace import Workspace
from edgesplit.errors import HostError, ServingError

ANSWER_SECONDS = 330.0  # silence that is borne: the API itself gives a request up after 300 s without a token


def stream(host: Any, space: Workspace, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The choices of a streamed answer. Raises ServingError."""
    api, entry = space.plan.api, space.plan.entry
    connection = http.client.HTTPConnection(api.address, api.port)
    try:
        connection.sock = host.dial(api.address, api.port)
        connection.sock.settimeout(ANSWER_SECONDS)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            if response.status != 200:
                raise _refused(space, response.status, response.read())
            for line in response:
                data = line.decode().removeprefix("data: ").strip()
                if data and data != "[DONE]":
                    yield _choice(json.loads(data), space)
    except HostError as error:
        hint = "\n".join(filter(None, [error.hint, f"if it is not deployed: edgesplit deploy {space.plan_file}"]))
        raise ServingError(f"no API: {error.message}", hint) from error
    except (OSError, http.client.HTTPException) as error:
        hint = f"edgesplit status {space.plan_file} says why"
        raise ServingError(f"the API of {entry} broke off: {error or type(error).__name__}", hint) from error
    except (ValueError, LookupError, TypeError) as error:
        raise _stranger(space) from error
    finally:
        connection.close()


def _choice(event: dict[str, Any], space: Workspace) -> dict[str, Any]:
    if "error" in event:
        raise ServingError(f"the answer broke off: {event['error']['message']}", f"edgesplit status {space.plan_file}")
    return dict(event["choices"][0])


def _refused(space: Workspace, status: int, answer: bytes) -> ServingError:
    try:
        message = json.loads(answer)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return _stranger(space)
    hint = f"edgesplit status {space.plan_file} says more"
    if status == 400:
        hint = "change the request; or the plan's workload, then profile, plan and deploy again"
    if status == 429:
        hint = "wait, or raise workload.concurrency in the plan, then profile, plan and deploy again"
    return ServingError(f"{space.plan.entry} answers {status}: {message}", hint)


def _stranger(space: Workspace) -> ServingError:
    place = f"{space.plan.api.address}:{space.plan.api.port} of {space.plan.entry}"
    return ServingError(f"what listens on {place} is not the API of edgesplit", "set `api.port` to a port of its own")
