"""A plan and what belongs to it: its inventory, its checkpoint, and the cache folder .edgesplit/ beside it.

Everything in the cache can be made again; the truth is on the hosts.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from edgesplit.broadcast.cargo import Cargo
from edgesplit.cli.render import counted
from edgesplit.errors import EdgesplitError, InputError, MovedError
from edgesplit.fleet import Fleet, Learned, Lessons
from edgesplit.hosts.fanout import connect
from edgesplit.hosts.host import Host
from edgesplit.inventory import Inventory, load_inventory
from edgesplit.model.checkpoint import Checkpoint, open_checkpoint, resolve
from edgesplit.model.shards import Cut, cut
from edgesplit.plan import ModelPlan, load_plan
from edgesplit.profiling.collect import measured_for
from edgesplit.revision.problem import Problem, permitted, pose
from edgesplit.split import Digests, Split
from edgesplit.values import Value, digest

T = TypeVar("T", bound=Value)
FRESH = 3600.0  # seconds for which `profile` takes what it measured before: load and free memory change by the hour


@dataclass(frozen=True)
class Workspace:
    plan_file: Path
    plan: ModelPlan
    inventory_file: Path
    inventory: Inventory

    @classmethod
    def open(cls, plan_file: Path, inventory_file: Path | None) -> Workspace:
        """Raises InputError for either file, and for a plan whose entry is not in the inventory."""
        plan = load_plan(plan_file)
        if inventory_file is None:
            inventory_file = _named(plan, plan_file)
            if inventory_file is None:
                raise InputError(f"{plan_file}: the plan names no inventory", "add `inventory:` or give -i FILE")
        inventory = load_inventory(inventory_file)
        if plan.entry not in inventory.hosts:
            names = ", ".join(inventory.hosts)
            raise InputError(f"{plan_file}: entry: no host {plan.entry} in {inventory_file}", f"it has {names}")
        if not inventory.hosts[plan.entry].trusted:
            hint = f"set `trusted: true` for {plan.entry}, or name a trusted host as entry"
            raise InputError(f"{plan_file}: entry: {plan.entry} is not trusted, but sees the text", hint)
        return cls(plan_file, plan, inventory_file, inventory)

    def command(self, verb: str, *more: str) -> str:
        """A verb on these very files, as a person types it."""
        elsewhere = self.inventory_file != _named(self.plan, self.plan_file)
        given = ["-i", str(self.inventory_file)] if elsewhere else []
        return shlex.join(["edgesplit", verb, str(self.plan_file), *given, *more])

    def folder(self, host: str) -> str:
        """Of the deployment, on a host."""
        return f"{self.inventory.hosts[host].work}/{self.plan.name}"

    @property
    def cache(self) -> Path:
        return self.plan_file.parent / ".edgesplit" / self.plan.name

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Raises ModelError; InputError when the plan asks for more context than the model has."""
        source = self.plan.model
        folder = resolve(source.source, source.revision, self.plan_file.parent)
        found = open_checkpoint(
            folder,
            source.source,
            self.plan.dtype,
            self.cache / f"chain-{self.plan.dtype}.json",
            trust_remote_code=source.trust_remote_code,
            quantization=self.plan.quantization,
        )
        wanted, has = self.plan.workload.max_context, found.chain.max_context
        if has is not None and wanted > has:
            raise InputError(
                f"{self.plan_file}: workload.max_context is {wanted}, but {source.source} knows {has} positions",
                f"set it to at most {has}",
            )
        if found.chain.image_positions is not None and wanted < found.chain.image_positions:
            raise InputError(
                f"{self.plan_file}: workload.max_context is {wanted}, but {source.source} makes "
                f"{found.chain.image_positions} positions of an image",
                "set it to at least as many",
            )
        return found

    def cargo(self) -> Cargo:
        """Everything that may be shipped; reads the weights once to name them, and remembers."""
        return Cargo(self.plan, self.inventory, self.checkpoint, self.cut())

    def cut(self) -> Cut:
        total = sum(tensor.size for tensor in self.checkpoint.tensors.values())
        with counted("naming the shards", total) as read:
            return cut(self.checkpoint, self.cache / "hashes.json", read)

    # --- what verbs leave for each other ---

    def save(self, name: str, value: Value) -> Path:
        """Raises EdgesplitError when the cache cannot be written."""
        path = self.cache / name
        part = path.with_suffix(f".{os.getpid()}.part")  # several verbs may run at once
        with self._writing(path):
            try:
                part.write_text(value.to_json())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        return path

    def check_cache(self) -> None:
        """Raises EdgesplitError when nothing can be saved: before hosts are measured for minutes."""
        with self._writing(self.cache):
            tempfile.TemporaryFile(dir=self.cache).close()

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            hint = "verbs leave each other notes in a folder beside the plan: put the plan where you may write"
            raise EdgesplitError(f"{path} cannot be written: {error.strerror}", hint) from error

    def _load(self, name: str, kind: type[T], verb: str) -> T:
        path, hint = self.cache / name, self.command(verb)
        try:
            return kind.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            done = {"profile": "the hosts were not measured yet", "plan": "no split was planned yet"}[verb]
            raise MovedError(f"{done}: there is no {path}", hint) from None
        except OSError as error:
            raise MovedError(f"{path} cannot be read: {error.strerror}", hint) from error
        except ValueError as error:
            raise MovedError(f"{path} is damaged", hint) from error

    @property
    def profile_name(self) -> str:
        """Each precision has its own, so that they can be compared."""
        return f"profile-{self.plan.precision}.json"

    def fleet(self) -> Fleet:
        """The saved profile, with what was learned of it. Raises MovedError when it was measured for something else."""
        fleet = self._load(self.profile_name, Fleet, "profile")
        if fleet.plan != measured_for(self.checkpoint, self.plan, self.inventory):
            raise MovedError(
                "the profile was measured for another model, precision, workload, number of cores or Python",
                self.command("profile"),
            )
        return fleet.model_copy(update={"learned": self._learned(fleet)})

    def keep(self, fleet: Fleet) -> None:
        """A profile that went on while it was used."""
        self.save(self.profile_name, fleet)

    def rereader(self) -> Callable[[], Inventory | None]:
        """Gives the inventory when its file is another one than the last time, else None. Raises InputError, once."""
        known = self.inventory_file.read_bytes()

        def reread() -> Inventory | None:
            nonlocal known
            try:
                now = self.inventory_file.read_bytes()
            except OSError:  # an editor is just putting it there
                return None
            if now == known:
                return None
            known = now
            return load_inventory(self.inventory_file)

        return reread

    def fresh_fleet(self, now: float) -> Fleet | None:
        """The saved profile where it is whole, of these hosts, and not older than FRESH."""
        try:
            fleet = self.fleet()
        except MovedError:
            return None
        whole = set(fleet.hosts) == set(self.inventory.hosts) and not fleet.problems
        return fleet if whole and now - fleet.measured_at < FRESH else None

    def learn(self, fleet: Fleet, learned: Learned) -> None:
        """Keep it with the profile it was learned of."""
        self.save(f"learned-{self.plan.precision}.json", Lessons(profile=fleet.digest, learned=learned))

    def _learned(self, fleet: Fleet) -> Learned:
        try:
            text = (self.cache / f"learned-{self.plan.precision}.json").read_bytes()
            lessons = Lessons.model_validate_json(text)
        except (OSError, ValueError):
            return Learned()
        return lessons.learned if lessons.profile == fleet.digest else Learned()

    def digests(self, fleet: Fleet) -> Digests:
        return Digests(
            inventory=digest(self.inventory),
            plan=digest(self.plan),
            profile=fleet.digest,
            checkpoint=self.checkpoint.chain.checkpoint,
        )

    def problem(self, fleet: Fleet) -> Problem:
        """Raises InputError for pins that make no sense, InfeasibleError when the entry cannot be used."""
        with self._named_by_the_plan():
            return pose(self.checkpoint.chain, fleet, self.plan, self.inventory)

    def check_pins(self) -> None:
        """Raises InputError for pins that make no sense, which needs no profile."""
        with self._named_by_the_plan():
            permitted(self.checkpoint.chain, self.plan, self.inventory)

    @contextmanager
    def _named_by_the_plan(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            hint = error.hint or "plans/example.yaml shows how pins are written"
            raise InputError(f"{self.plan_file}: {error.message}", hint) from error

    def split(self) -> Split:
        """The saved split. Raises MovedError when anything it was computed from has changed since."""
        now = self.digests(self.fleet())
        split = self._load("split.json", Split, "plan")
        changed = [name for name in Digests.model_fields if getattr(split.digests, name, None) != getattr(now, name)]
        if changed:
            raise MovedError(f"the {' and the '.join(changed)} changed since the split was computed",
                             self.command("plan"))  # fmt: skip
        return split


@contextmanager
def at_entry(plan: Path, inventory: Path | None, *, accept_new: bool) -> Iterator[tuple[Workspace, Host]]:
    """What the files say, and the entry host."""
    space = Workspace.open(plan, inventory)
    entry = space.plan.entry
    with connect(space.inventory, [entry], accept_new=accept_new) as hosts:
        yield space, hosts[entry]


def _named(plan: ModelPlan, plan_file: Path) -> Path | None:
    """The inventory that the plan names."""
    return None if plan.inventory is None else plan_file.parent / Path(plan.inventory).expanduser()
