"""A request to the deployment's API, through the SSH connection to its entry; the answer as it comes.

Must not know: what is asked, how an answer is shown.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from edgesplit.broadcast.remote import NotServing, api_key, present
from edgesplit.cli.workspace import Workspace
from edgesplit.errors import HostError, InputError, ServingError
from edgesplit.hosts.host import Host

UNAUTHORIZED = 401
ANSWER_SECONDS = 330.0  # silence that is borne: the API itself gives a request up after 300 s without a token


@dataclass
class Api:
    """The API of a deployment, behind its entry. A key is fetched over SSH where one is wanted; nobody types it."""

    host: Host
    space: Workspace
    _key: str = ""

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The choices of a streamed answer. Raises ServingError; InputError for what is no text."""
        space, entry = self.space, self.space.plan.entry
        try:
            with self._post(path, body) as response:
                if response.status != 200:
                    raise _refused(space, response.status, response.read())
                for line in response:
                    data = line.decode().removeprefix("data: ").strip()
                    if data and data != "[DONE]":
                        yield _choice(json.loads(data), space)
        except HostError as error:
            hint = "\n".join(filter(None, [error.hint, f"if it is not deployed: {space.command('deploy')}"]))
            raise ServingError(f"no API: {error.message}", hint) from error
        except (OSError, http.client.HTTPException) as error:
            hint = f"{space.command('status')} says why"
            raise ServingError(f"the API of {entry} broke off: {error or type(error).__name__}", hint) from error
        except (ValueError, LookupError, TypeError) as error:
            raise _stranger(space) from error

    def threads(self) -> int:
        """That the entry's runner computes with. Raises ServingError, HostError."""
        name = self.host.name
        _, state = present(self.host, self.space.folder(name), self.space.inventory.hosts[name])
        if state is None:
            raise ServingError(f"the runner of {name} has gone", self.space.command("status"))
        return int(state["threads"])

    @contextmanager
    def _post(self, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        try:
            asked = json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError("what is asked is not text in UTF-8") from None
        for last in (False, True):
            with closing(self._connection()) as connection:
                login = {"Authorization": f"Bearer {self._key}"} if self._key else {}
                connection.request("POST", path, asked, {"Content-Type": "application/json", **login})
                with connection.getresponse() as response:
                    if response.status != UNAUTHORIZED or last:
                        yield response
                        return
            self._key = self._fetched()

    def _connection(self) -> http.client.HTTPConnection:
        api = self.space.plan.api
        connection = http.client.HTTPConnection(api.address, api.port)
        connection.sock = self.host.dial(api.address, api.port)
        connection.sock.settimeout(ANSWER_SECONDS)
        return connection

    def _fetched(self) -> str:
        name = self.host.name
        try:
            return api_key(self.host, self.space.inventory.hosts[name], self.space.folder(name))
        except NotServing as error:
            raise _stranger(self.space) from error


def _choice(event: dict[str, Any], space: Workspace) -> dict[str, Any]:
    if "error" in event:
        raise ServingError(f"the answer broke off: {event['error']['message']}", space.command("status"))
    return dict(event["choices"][0])


def _refused(space: Workspace, status: int, answer: bytes) -> ServingError:
    try:
        message = json.loads(answer)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return _stranger(space)
    hint = f"{space.command('status')} says more"
    if status == 400:
        hint = "change the request; or the plan's workload, then profile, plan and deploy again"
    if status == 429:
        hint = "wait, or raise workload.concurrency in the plan, then profile, plan and deploy again"
    return ServingError(f"{space.plan.entry} answers {status}: {message}", hint)


def _stranger(space: Workspace) -> ServingError:
    place = f"{space.plan.api.address}:{space.plan.api.port} of {space.plan.entry}"
    return ServingError(f"what listens on {place} is not the API of edgesplit", "set `api.port` to a port of its own")
