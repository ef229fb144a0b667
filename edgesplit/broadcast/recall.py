"""What served before, or serves now, to be brought up again: another cargo for the same push.

Must not know: how anything is carried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgesplit.broadcast.cargo import Cargo, split_of
from edgesplit.broadcast.remote import manifest
from edgesplit.broadcast.scene import Scene
from edgesplit.errors import DeployError
from edgesplit.hosts.host import Host
from edgesplit.runner.manifest import Manifest
from edgesplit.split import Split

HINT = "deploy what shall serve"


@dataclass(frozen=True)
class Recalled(Cargo):
    """Weights, files and service as a manifest has them, whatever the plan says by now. What hosts have of them need
    not be sent; the rest can be, where the plan still makes it."""

    before: Manifest

    @property
    def split(self) -> Split:
        return split_of(self.before)

    def manifest(self, target: Split, fingerprints: Mapping[str, str]) -> Manifest:
        peers = {host: self._peer(host, fingerprints.get(host, "")) for host in target.hosts}
        return replace(self.before, epoch=target.epoch, peers=peers, split=target.model_dump(mode="json"))

    def size(self, path: str) -> int:
        return self.things[path].size if path in self.things else 0  # it is there, or `gone` has said so

    def gone(self, scene: Scene) -> dict[str, int]:
        """host -> how many of its files are there no more, and are not what the plan makes."""
        absent = {host: self.paths(self.before, host) - set(self.things) for host in self.split.hosts}
        lost = {host: len(paths - scene.presences[host].objects) for host, paths in absent.items()}
        return {host: count for host, count in lost.items() if count}


def recall(cargo: Cargo, hosts: Mapping[str, Host], scene: Scene) -> Recalled:
    """What served before the present split. Raises DeployError where nothing did, or it cannot be brought back."""
    entry = cargo.plan.entry
    before = manifest(hosts[entry], cargo.folder(entry), "previous.json")
    if before is None or (scene.manifest is not None and before.same_split(scene.manifest)):
        raise DeployError(f"{cargo.name} has no split to go back to: none served before this one", HINT)
    return _recalled(cargo, scene, before, "the split before this one")


def repeat(cargo: Cargo, scene: Scene) -> Recalled:
    """What serves, once more: as the next epoch, whose keys are its own. Raises DeployError where nothing serves."""
    if scene.manifest is None:
        raise DeployError(f"{cargo.name} serves nothing on {cargo.plan.entry}", HINT)
    return _recalled(cargo, scene, scene.manifest, "the split that serves")


def _recalled(cargo: Cargo, scene: Scene, before: Manifest, what: str) -> Recalled:
    recalled = Recalled(cargo.plan, cargo.inventory, cargo.checkpoint, cargo.cut, before)
    if before.trust_remote_code and not cargo.plan.model.trust_remote_code:
        raise DeployError(f"{what} runs the checkpoint's own code, which the plan no longer trusts", HINT)
    if absent := [host for host in recalled.split.hosts if host not in scene.presences]:
        raise DeployError(f"{', '.join(absent)}: in {what}, but not in the inventory", HINT)
    if gone := recalled.gone(scene):
        told = ", ".join(f"{host} lacks {count}" for host, count in gone.items())
        raise DeployError(f"weights of {what} were removed since: {told}", HINT)
    return recalled
