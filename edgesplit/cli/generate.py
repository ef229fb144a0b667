"""edgesplit generate: text through the split, over the same API any client uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import ServingError

ANSWER_SECONDS = 330.0  # silence that is borne: the API itself gives a request up after 300 s without a token


def run(
    plan: Plan,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on from.", show_default=False)],
    inventory: Inventory = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens at most.")] = 64,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy; else the model's own.")] = None,
    seed: Annotated[int | None, typer.Option(help="For sampling that can be repeated.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask as a user of a chat, with the model's template.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Also run the unsplit model here; compare the tokens (greedy).")
    ] = False,
    accept_new: AcceptNew = False,
    as_json: Json = False,
) -> None:
    """Generate text through the split."""
    from edgesplit.cli.render import print_json, talk
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import ServingError
    from edgesplit.hosts.fanout import connect

    space = Workspace.open(plan, inventory)
    body: dict[str, Any] = {"max_tokens": max_tokens, "stream": True, "return_token_ids": True}
    body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    body |= {"temperature": 0.0 if check else temperature, "seed": seed}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    tokens: list[int] = []
    asked: list[int] = []
    text, end = "", None
    with connect(space.inventory, [space.plan.entry], accept_new=accept_new) as hosts:
        for choice in _stream(hosts[space.plan.entry], space, path, body):
            piece = choice["delta"]["content"] if chat else choice["text"]
            text += piece
            end = choice["finish_reason"] or end
            tokens, asked = choice.get("token_ids", tokens), choice.get("prompt_token_ids", asked)
            if not as_json:
                typer.echo(piece, nl=False)
    if not as_json:
        typer.echo()
    same = None
    if check:
        from edgesplit.model.unsplit import greedy

        same = greedy(space.checkpoint, space.cut, asked, max_tokens)[: len(tokens)] == tokens
    if as_json:
        print_json({"text": text, "finish_reason": end, "token_ids": tokens, "equal_to_unsplit": same})
    if end == "timeout" or end is None:
        raise ServingError("the answer broke off", f"edgesplit status {space.plan_file} says why")
    if same is False:
        raise ServingError("the split model's tokens differ from the unsplit model's", "please report this")
    if same:
        talk.print(f"checked: all {len(tokens)} tokens equal those of the unsplit model")


def _stream(host: Any, space: Workspace, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The choices of a streamed answer. Raises ServingError."""
    import http.client
    import json

    from edgesplit.errors import HostError, ServingError

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
                    yield json.loads(data)["choices"][0]
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


def _refused(space: Workspace, status: int, answer: bytes) -> ServingError:
    import json

    from edgesplit.errors import ServingError

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
    from edgesplit.errors import ServingError

    place = f"{space.plan.api.address}:{space.plan.api.port} of {space.plan.entry}"
    return ServingError(f"what listens on {place} is not the API of edgesplit", "set `api.port` to a port of its own")
