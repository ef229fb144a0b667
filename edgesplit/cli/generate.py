"""edgesplit generate: text through the split, over the same API any client uses."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan


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
    from edgesplit.cli.asking import Api
    from edgesplit.cli.render import print_json, talk
    from edgesplit.cli.workspace import at_entry
    from edgesplit.errors import ServingError

    body: dict[str, Any] = {"max_tokens": max_tokens, "stream": True, "return_token_ids": True}
    body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    body |= {"temperature": 0.0 if check else temperature, "seed": seed}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    tokens: list[int] = []
    asked: list[int] = []
    text, end = "", None
    with at_entry(plan, inventory, accept_new=accept_new) as (space, entry):
        api = Api(entry, space)
        try:
            for choice in api.stream(path, body):
                piece = choice["delta"]["content"] if chat else choice["text"]
                text += piece
                end = choice["finish_reason"] or end
                tokens, asked = choice.get("token_ids", tokens), choice.get("prompt_token_ids", asked)
                if not as_json:
                    typer.echo(piece, nl=False)
        finally:
            if text and not as_json:
                typer.echo()
        threads = api.threads() if check and space.plan.quantization else 1
    same = None
    if check:
        from edgesplit.model.unsplit import Computing, greedy

        computing = Computing(space.plan.prefill_chunk, threads)
        expected = greedy(space.checkpoint, space.cut, asked, max_tokens, computing=computing)
        same = expected[: len(tokens)] == tokens
    if as_json:
        print_json({"text": text, "finish_reason": end, "token_ids": tokens, "equal_to_unsplit": same})
    if end is None:
        raise ServingError("the answer broke off", f"{space.command('status')} says why")
    if same is False:
        raise ServingError("the split model's tokens differ from the unsplit model's", "please report this")
    if same:
        talk.print(f"checked: all {len(tokens)} tokens equal those of the unsplit model")
