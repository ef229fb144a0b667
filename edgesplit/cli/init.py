"""edgesplit init: a first inventory and plan, from the hosts that somebody has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgesplit.draft import Found

FORGES = {"github.com", "gitlab.com", "bitbucket.org", "codeberg.org", "ssh.dev.azure.com"}  # no machines of anybody's
WAY = ("port", "proxyjump", "proxycommand")  # what ssh's configuration says of the way to an address
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"


def run(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the two files go.")] = Path(),
    from_ssh_config: Annotated[
        bool, typer.Option("--from-ssh-config", help="Every host that ~/.ssh/config names (the default).")
    ] = False,
    ansible: Annotated[
        Path | None, typer.Option("--ansible", help="The hosts of an Ansible inventory (YAML).", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Id on the Hugging Face hub, or a folder.")] = MODEL,
) -> None:
    """Write inventory.yaml and plan.yaml, with comments; this machine is the entry. Nothing is ever overwritten."""
    import shlex

    from edgesplit import draft
    from edgesplit.cli.render import talk
    from edgesplit.errors import InputError

    if ansible is not None and from_ssh_config:
        raise InputError("--ansible and --from-ssh-config are two ways to say where the hosts are", "give one of them")
    files = folder / "inventory.yaml", folder / "plan.yaml"
    there = [str(file) for file in files if file.exists()]
    if there:
        raise InputError(
            f"{' and '.join(there)} exist{'s' if len(there) == 1 else ''} already",
            "give another folder: edgesplit init FOLDER",
        )
    hosts = _of_ansible(ansible) if ansible is not None else _of_ssh_config()
    origin = f"from {ansible}" if ansible is not None else "from ~/.ssh/config"
    here = _here([host.address for host in hosts])
    if Path(model).is_dir():
        model = str(Path(model).resolve())
    texts = (
        draft.inventory(hosts, origin, here),
        draft.plan(draft.deployment_name(model), model, files[0].name, len(hosts)),
    )
    for file, text in zip(files, texts, strict=True):
        _write(file, text)
    talk.print(
        f"{files[0]}: {', '.join(['this machine', *(host.name for host in hosts)])}; {files[1]}: {model}",
        soft_wrap=True,
    )
    if not hosts:
        talk.print("no other host was found: add yours to the inventory by hand")
    talk.print(f"next: {shlex.join(['edgesplit', 'check', str(files[1])])}", soft_wrap=True)


def _write(file: Path, text: str) -> None:
    from edgesplit.errors import InputError

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x") as opened:
            opened.write(text)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}", "give another folder") from error


def _of_ssh_config() -> list[Found]:
    """What `ssh ALIAS` would reach; an alias that ssh itself cannot make sense of is left to `edgesplit check`."""
    from edgesplit.draft import Found, apart
    from edgesplit.errors import Unreachable
    from edgesplit.hosts.ssh_config import aliases, ask
    from edgesplit.inventory import SshTarget

    found = []
    for alias in aliases():
        target = SshTarget(host=alias)
        try:
            said = ask(alias, target)
        except Unreachable:
            said = {}
        address = said.get("hostname", [alias])[0]
        if address not in FORGES:
            more = {} if address == alias else {"data": {"address": address}}
            way = tuple(word for keyword in WAY for word in said.get(keyword, ()))
            found.append(Found(alias, target, more, way))
    return apart(found)


def _of_ansible(file: Path) -> list[Found]:
    from edgesplit.cli.render import talk
    from edgesplit.draft import Found
    from edgesplit.errors import InputError
    from edgesplit.inventory import load_inventory

    whole = f"ansible-inventory -i {file} --list --yaml > hosts.yaml"
    try:
        hosts = load_inventory(file).hosts.items()
    except InputError as error:
        hint = error.hint if file.suffix in (".yaml", ".yml") else f"an inventory in YAML is read: {whole}"
        raise InputError(error.message, hint) from error
    for folder in ("group_vars", "host_vars"):
        if (file.parent / folder).is_dir():
            talk.print(f"{file.parent / folder} was not read; with what it says: {whole}", soft_wrap=True)
    return [
        Found(name, spec.ssh, spec.model_dump(exclude={"connection", "ssh"}, exclude_defaults=True))
        for name, spec in hosts
        if spec.ssh is not None
    ]


def _here(others: Sequence[str]) -> str:
    """The address from which this machine would reach one of them: no packet is sent."""
    import socket

    for other in others:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((other, 9))
                return str(probe.getsockname()[0])
            except OSError:
                continue
    return "127.0.0.1"
