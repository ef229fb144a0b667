"""Checkpoints that bring their own code: refused unless the plan trusts them, then cut as exactly as any other; and
nothing of it comes from anywhere but the checkpoint's folder."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import config
from links import manifest
from models import VOCABULARY, tokenizer
from splits import manifest_of, same, ship, stages
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging
from workspaces import lay

from edgesplit.broadcast.archive import runner_archive, with_code
from edgesplit.errors import ModelError
from edgesplit.model.checkpoint import Checkpoint, open_checkpoint
from edgesplit.runner.anatomy import model_class, read_config
from edgesplit.runner.api import Front
from edgesplit.runner.manifest import ManifestError, parse
from edgesplit.runner.owncode import CodeError
from edgesplit.runner.tokens import TokenizerError

CONFIG = """
from transformers import LlamaConfig

class TwistConfig(LlamaConfig):
    model_type = "twist"
    twist: float = 0.5
"""
PARTS = """
from torch import nn

class Gate(nn.Module):
    def __init__(self, size, twist):
        super().__init__()
        self.linear, self.twist = nn.Linear(size, size, bias=False), twist

    def forward(self, hidden):
        return hidden * (1 + self.twist * self.linear(hidden).tanh())
"""
MODELING = """
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel

from .configuration_twist import TwistConfig
from .parts import Gate

class TwistLayer(LlamaDecoderLayer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.gate = Gate(config.hidden_size, config.twist)

    def forward(self, hidden_states, *args, **kwargs):
        return self.gate(super().forward(hidden_states, *args, **kwargs))

class TwistModel(LlamaModel):
    config_class = TwistConfig

    def __init__(self, config):
        super().__init__(config)
        for number in range(config.num_hidden_layers):
            self.layers[number] = TwistLayer(config, number)
        self.post_init()

class TwistForCausalLM(LlamaForCausalLM):
    config_class = TwistConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = TwistModel(config)
        self.post_init()
"""
TOKENIZATION = """
from transformers import PreTrainedTokenizerFast

class TwistTokenizer(PreTrainedTokenizerFast):
    def __call__(self, text, **more):
        return super().__call__(text.upper(), **more)
"""
ROLES = {"AutoConfig": "configuration_twist.TwistConfig", "AutoModelForCausalLM": "modeling_twist.TwistForCausalLM"}
SIZES: dict[str, Any] = {
    "model_type": "twist", "auto_map": ROLES, "architectures": ["TwistForCausalLM"], "vocab_size": VOCABULARY,
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "dtype": "float32",
}  # fmt: skip


def write(folder: Path, **more: str) -> Path:
    """The code and the config; `more`: other sources by module."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {"configuration_twist": CONFIG, "parts": PARTS, "modeling_twist": MODELING, **more}
    for module, source in sources.items():
        (folder / f"{module}.py").write_text(source)
    (folder / "config.json").write_text(json.dumps(SIZES))
    return folder


def whole(folder: Path) -> PreTrainedModel:
    """What transformers makes of it, by its own way of running a checkpoint's code."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, local_files_only=True).eval()


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers keeps copies of code in a folder of the user's; here in one of the test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.disable_progress_bar()
    folder = write(tmp_path_factory.mktemp("twist") / "model", tokenization_twist=TOKENIZATION)
    torch.manual_seed(0)
    model = model_class(settings := read_config(str(folder), trust_remote_code=True))(settings)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3) if weight.dim() > 1 else None
    own = {file: file.read_bytes() for file in folder.iterdir()}
    model.save_pretrained(folder, max_shard_size="60KB")
    tokenizer().save_pretrained(folder)
    for file, data in own.items():
        file.write_bytes(data)
    settings_file = folder / "tokenizer_config.json"
    roles = {"AutoTokenizer": [None, "tokenization_twist.TwistTokenizer"]}
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), "auto_map": roles}))
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "model")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls anybody fails."""

    def refuse(*words: Any) -> None:
        raise AssertionError(f"a connection was opened: {words}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def trusted(folder: Path, **more: Any) -> Checkpoint:
    return open_checkpoint(folder, "twist", "float32", trust_remote_code=True, **more)


# --- trusted


@pytest.mark.usefixtures("offline")
def test_it_is_cut_exactly_at_every_boundary(made: Path, tmp_path: Path) -> None:
    found, unsplit = trusted(made), whole(made)
    assert found.chain.architecture == "TwistForCausalLM"
    assert found.chain.blocks[1].weight_bytes > 4 * 32 * 32
    for end in range(len(found.chain.blocks) - 1):
        same(stages(found, tmp_path, end, trusted=True), unsplit)
    same(stages(found, tmp_path, 0, 2, trusted=True), unsplit)


def test_its_code_travels_with_it(made: Path, tmp_path: Path) -> None:
    found = trusted(made)
    code = {"configuration_twist.py", "modeling_twist.py", "parts.py", "tokenization_twist.py"}
    assert code <= {path.name for path in found.side_files}
    ship(found, tmp_path / "host")
    wanted = manifest_of(found, tmp_path / "host", (), trust_remote_code=True)
    assert code <= set(wanted.files)
    data = json.loads(json.dumps(manifest(files=wanted.files, trust_remote_code=True).to_dict()))
    assert parse(data).trust_remote_code is True
    for untrusted in (False, "true", 1, None):
        with pytest.raises(ManifestError, match="code, which nobody trusts"):
            parse({**data, "trust_remote_code": untrusted})


def test_two_versions_are_two_models_in_one_process(made: Path, copy: Path, tmp_path: Path) -> None:
    """Under the same names, in the same files; as while one epoch takes over from another."""
    (copy / "parts.py").write_text(PARTS.replace("1 + self.twist", "1 - self.twist"))
    (copy / "configuration_twist.py").write_text(CONFIG + "# transformers takes a model it knows for an equal config\n")
    old, new = trusted(made), trusted(copy)
    assert old.chain.checkpoint != new.chain.checkpoint
    pairs = [(old, "old", whole(made)), (new, "new", whole(copy))]
    chains = [stages(found, tmp_path / name, 1, trusted=True) for found, name, _ in pairs]
    for chain, (_, _, unsplit) in zip(chains, pairs, strict=True):
        same(chain, unsplit)
    again = stages(old, tmp_path / "old", 1, trusted=True)
    assert type(again[0].model).__module__ == type(chains[0][0].model).__module__
    assert type(chains[1][0].model).__module__ != type(chains[0][0].model).__module__


def test_a_plan_that_trusts_it_is_believed_by_every_verb(made: Path, tmp_path: Path) -> None:
    desk = lay(tmp_path / "desk", made)
    refused = desk.run("profile")
    assert (refused.code, "needs its own code, which is not run" in refused.error) == (3, True)
    desk.change_plan(model={"source": str(made), "trust_remote_code": True})
    desk.planned()
    dry = desk.run("deploy", "--dry-run", "--json")
    assert (dry.code, "ship" in dry.out) == (0, True), dry.err


def test_hosts_are_measured_with_its_code(made: Path, tmp_path: Path) -> None:
    """In a process of its own, as over SSH: from the archive alone."""
    found = trusted(made)
    code = {file.name: file.read_bytes() for file in found.own_code}
    (tmp_path / "runner.pyz").write_bytes(with_code(runner_archive(), code))
    asked = {"config": found.config, "code": [*code], "dtype": "float32", "quantization": None, "contexts": [4, 1],
             "chunk": 4, "far": 0, "rows": 1, "layer_bytes": 2**20, "threads": 1, "head": False,
             "folder": str(tmp_path)}  # fmt: skip
    words = [sys.executable, "runner.pyz", "measure", json.dumps(asked)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["times"]["chunk_tokens"] == 4


def test_a_stage_outlives_its_folder(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "gone")
    kind = model_class(read_config(str(folder), trust_remote_code=True))
    shutil.rmtree(folder)
    with torch.device("meta"):
        assert kind(read_config(str(made), trust_remote_code=True)).model.layers[0].gate.twist == 0.5


@pytest.mark.usefixtures("offline")
def test_its_tokenizer_is_its_own(made: Path) -> None:
    front = Front.load(manifest().service, made, trusted=True)
    assert front.tokenizer.decode(front.encoded("hi")) == "HI"
    assert front.vocabulary == VOCABULARY


def test_what_was_found_out_is_remembered_for_this_code(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "chain.json"
    first = trusted(copy, cache=cache)
    assert trusted(copy, cache=cache) == first
    (copy / "parts.py").write_text(PARTS + "# changed\n")
    assert trusted(copy, cache=cache).chain.checkpoint != first.chain.checkpoint
    with pytest.raises(ModelError, match="needs its own code, which is not run"):
        open_checkpoint(copy, "twist", "float32", cache)


def test_a_trusted_checkpoint_without_code_is_like_any_other(copy: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(copy, tmp_path / "plain", ignore=shutil.ignore_patterns("*.py", "tokenizer*"))
    config(folder, auto_map=None, model_type="llama", architectures=["LlamaForCausalLM"])
    found = trusted(folder)
    assert (found.chain.architecture, len(found.places)) == ("LlamaForCausalLM", len(found.tensors) - 3)  # the gates


# --- not trusted


def test_nothing_is_run_that_nobody_trusts(copy: Path, tmp_path: Path) -> None:
    witness = tmp_path / "it ran"
    for file in copy.glob("*.py"):
        file.write_text(f"open({str(witness)!r}, 'w')\n")
    with pytest.raises(ModelError, match="needs its own code, which is not run") as caught:
        open_checkpoint(copy, "twist", "float32")
    assert "trust_remote_code: true" in caught.value.hint
    with pytest.raises(ValueError, match="trust_remote_code"):
        read_config(str(copy))
    with pytest.raises((TokenizerError, ValueError)):
        Front.load(manifest().service, copy)
    assert not witness.exists()
    with pytest.raises(ModelError):
        trusted(copy)
    assert witness.exists()  # so it would have been seen


def test_no_config_can_name_a_class_of_ours(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    config(folder, own_model_class="subprocess.Popen", auto_map=None, model_type="llama", architectures=None)
    assert model_class(read_config(str(folder))).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.usefixtures("offline")
def test_code_from_elsewhere_is_refused_even_when_trusted(copy: Path, file: str) -> None:
    elsewhere = "somebody/else--modeling_twist.TwistForCausalLM"
    roles: dict[str, Any] = {**ROLES, "AutoModelForCausalLM": elsewhere, "AutoTokenizer": [None, elsewhere]}
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": roles}))
    with pytest.raises(ModelError, match=f"{file} takes code from elsewhere: {elsewhere}") as caught:
        trusted(copy)
    assert "read that code" in caught.value.hint
    with pytest.raises(CodeError, match="is no class of a file beside its config"):  # nor would a runner
        Front.load(manifest().service, copy, trusted=True)


REFERENCES = ["os.system", "../evil.Class", "parts", "", "parts.", ".Gate", "a b.C", "sub.module.Class"]


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_names_a_class_in_a_file_beside_the_config(copy: Path, reference: str) -> None:
    config(copy, auto_map={**ROLES, "AutoModelForCausalLM": reference})
    with pytest.raises(ModelError):
        trusted(copy)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a package is missing": (
        lambda folder: (folder / "parts.py").write_text("import no_such_package\n" + PARTS),
        "its own code cannot be run: ModuleNotFoundError: No module named 'no_such_package'",
    ),
    "it is no Python": (
        lambda folder: (folder / "modeling_twist.py").write_text("class:"),
        "its own code cannot be run: SyntaxError",
    ),
    "it raises": (
        lambda folder: (folder / "parts.py").write_text("raise Exception('no luck')"),
        "its own code cannot be run: Exception: no luck",
    ),
    "no such class": (
        lambda folder: config(folder, auto_map={**ROLES, "AutoModelForCausalLM": "modeling_twist.Twits"}),
        "its own code cannot be run: AttributeError",
    ),
    "no such file": (lambda folder: (folder / "modeling_twist.py").unlink(), "is no class of a file beside its config"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_code_that_cannot_be_run_is_a_model_error(copy: Path, name: str) -> None:
    spoil, said = BROKEN[name]
    spoil(copy)
    with pytest.raises(ModelError) as caught:
        trusted(copy)
    assert str(copy) in caught.value.message
    assert said in caught.value.message
    assert caught.value.hint
