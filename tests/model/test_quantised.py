"""Quantised weights: chosen while a checkpoint is cut, held by the stages; cut anywhere they answer as one stage does,
and one stage answers as transformers would with the restored weights."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import rings  # noqa: F401 - one thread
import torch
from models import FAMILIES, config
from safetensors.torch import load, load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from edgesplit.errors import ModelError
from edgesplit.model import quantise, shards
from edgesplit.model.checkpoint import Checkpoint, open_checkpoint
from edgesplit.model.shards import Cut, cut
from edgesplit.runner import kernels, quantised
from edgesplit.runner.anatomy import read_config
from edgesplit.runner.kernels import Unpacking, restore
from edgesplit.runner.precision import CODES, SCALES, Scheme, is_quantised, stored
from edgesplit.runner.quantised import QuantisedLinear
from edgesplit.runner.stage import DTYPES, Stage, StageError

LAYERS = 3  # blocks: 0 embedding, 1 to 3 layers, 4 head
HEAD = LAYERS + 1
PROMPT = [40, 7, 99, 140, 23, 200]
COUNT = 5
CLOSE = 1e-5  # relative error of logits in float32
CUTS = [(0,), (1,), (2,), (3,), (0, 3), (1, 2), (0, 1, 2, 3)]  # last block of every stage but the last
SCHEMES: tuple[Scheme, ...] = ("int8", "int4")
CPU = torch.device("cpu")

EVERY = pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
BOTH = pytest.mark.parametrize("scheme", SCHEMES)


def tiny(family: str) -> PreTrainedConfig:
    """Every matrix in whole groups. gemma3 scales its embedding, which is its head too."""
    if family == "gemma3":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "head_dim": 16}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}
        return Gemma3TextConfig(vocab_size=258, **sizes, **heads, max_position_embeddings=128)
    made = config(family, LAYERS)
    if hasattr(made, "intermediate_size"):
        made.intermediate_size = 64
    return made


@dataclasses.dataclass(frozen=True)
class Subject:
    """A checkpoint and its shards at one precision, and stages loaded from them."""

    folder: Path
    checkpoint: Checkpoint
    cut: Cut
    work: Path

    def files(self, blocks: Sequence[int]) -> Path:
        """What a runner that holds these blocks has."""
        folder = self.work / "-".join(map(str, blocks))
        if not folder.exists():
            lay_out(folder, self.cut, blocks)
        return folder

    def stage(self, first: int, last: int, dtype: str = "float32") -> Stage:
        blocks = {*range(first, last + 1)} | ({0} if self.checkpoint.tied and last == HEAD else set())
        return Stage.load(self.files(sorted(blocks)), first, last, dtype)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        every = [*self.cut.blocks, self.cut.common]
        return {key: tensor for shard in every for key, tensor in load(b"".join(shard.chunks())).items()}


def lay_out(folder: Path, made: Cut, blocks: Sequence[int]) -> None:
    folder.mkdir(parents=True)
    places = {}
    for shard in [*(made.blocks[block] for block in blocks), made.common]:
        (folder / f"{shard.sha256}.safetensors").write_bytes(b"".join(shard.chunks()))
        places.update(dict.fromkeys((tensor.key for tensor in shard.tensors), f"{shard.sha256}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for name, (_, path) in made.files.items():
        shutil.copy(path, folder / name)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family) / "model"
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny(family)).eval()
        for name, weight in model.named_parameters():  # so that answers vary, and no embedding drowns the layers
            torch.nn.init.normal_(weight, std=0.05 if "embed" in name else 0.25) if weight.dim() > 1 else None
        model.save_pretrained(folder, max_shard_size="60KB")
        return folder

    return make


@pytest.fixture(scope="module")
def subjects(
    checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Scheme], Subject]:
    @cache
    def make(family: str, scheme: Scheme) -> Subject:
        work = tmp_path_factory.mktemp(f"{family}-{scheme}")
        checkpoint = opened(checkpoints(family), scheme)
        made = cut(checkpoint, work / "hashes.json")
        return Subject(checkpoints(family), checkpoint, made, work)

    return make


def opened(folder: Path, scheme: Scheme | None = None, dtype: str = "float32") -> Checkpoint:
    return open_checkpoint(folder, "model", dtype, folder / f"chain-{dtype}.json", quantization=scheme)


def answer(stages: Sequence[Stage]) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens, and the logits they were chosen from."""
    sequences = [stage.sequence() for stage in stages]
    tokens, new, logits = [*PROMPT], [*PROMPT], []
    for _ in range(COUNT):
        value: Any = torch.tensor([new])
        for stage, sequence in zip(stages, sequences, strict=True):
            value = stage.forward(sequence, value)
        logits.append(value[0, -1])
        new = [int(value[0, -1].argmax())]
        tokens += new
    return tokens, torch.stack(logits)


# --- split and unsplit ---


@EVERY
@BOTH
def test_every_cut_gives_what_one_stage_gives(
    subjects: Callable[[str, Scheme], Subject], family: str, scheme: Scheme
) -> None:
    subject = subjects(family, scheme)
    tokens, logits = answer([subject.stage(0, HEAD)])
    assert len({*tokens[len(PROMPT) :]}) > 1
    for places in CUTS:
        found, others = answer([subject.stage(left + 1, right) for left, right in pairwise([-1, *places, HEAD])])
        assert found == tokens, places
        assert torch.equal(others, logits), places


@EVERY
@BOTH
def test_one_stage_is_the_model_with_the_restored_weights(
    subjects: Callable[[str, Scheme], Subject], monkeypatch: pytest.MonkeyPatch, family: str, scheme: Scheme
) -> None:
    """In float32 throughout: without kernels, which round what comes in to bfloat16."""
    monkeypatch.setattr(quantised, "kernel", lambda *_: Unpacking())
    subject = subjects(family, scheme)
    twin = AutoModelForCausalLM.from_pretrained(subject.folder).eval()
    tensors = subject.tensors
    weights = [key.removesuffix(CODES) for key in tensors if key.endswith(CODES)]
    assert weights
    for weight in weights:
        put(twin, weight, restored(tensors[f"{weight}{CODES}"], tensors[f"{weight}{SCALES}"]))
    with torch.no_grad():
        wanted = twin(torch.tensor([PROMPT])).logits[0, -1]
    stage = subject.stage(0, HEAD)
    found = stage.forward(stage.sequence(), torch.tensor([PROMPT]))[0, -1]
    assert (found - wanted).norm() <= CLOSE * wanted.norm()


def restored(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    if codes.dim() == 2:
        return restore(codes, scales)
    return torch.stack([restore(*expert) for expert in zip(codes, scales, strict=True)])


@torch.no_grad()
def put(model: torch.nn.Module, name: str, weight: torch.Tensor) -> None:
    turned = type(model.get_submodule(name.rpartition(".")[0])) is Conv1D
    model.get_parameter(name).copy_(weight.t() if turned else weight)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@BOTH
def test_other_dtypes(subjects: Callable[[str, Scheme], Subject], dtype: str, scheme: Scheme) -> None:
    subject = subjects("llama", scheme)
    _, wanted = answer([subject.stage(0, HEAD)])
    whole, split = [subject.stage(0, HEAD, dtype)], [subject.stage(0, 2, dtype), subject.stage(3, HEAD, dtype)]
    tokens, found = answer(whole)
    assert found.dtype == DTYPES[dtype]
    assert (found[0].float() - wanted[0]).norm() <= 0.03 * wanted[0].norm()
    assert answer(split)[0] == tokens


def test_stages_share_quantised_blocks(subjects: Callable[[str, Scheme], Subject]) -> None:
    subject = subjects("mixtral", "int4")
    lender = subject.stage(0, 2)
    heir = Stage.load(subject.files([1, 2, 3]), 1, 3, "float32", donors=[lender])
    places = [{id(tensor) for tensor in held(stage, 1)} for stage in (lender, heir)]
    assert places[0] == places[1] != set()
    assert not {id(tensor) for tensor in held(heir, 2)} & places[0]
    rest = subject.stage(4, HEAD)
    assert answer([subject.stage(0, 0), heir, rest])[0] == answer([subject.stage(0, HEAD)])[0]


def held(stage: Stage, layer: int) -> list[torch.Tensor]:
    path = f"layers.{layer}."
    return [
        tensor for name, tensor in stage.model.named_buffers() if path in name and name.endswith(("codes", "scales"))
    ]


def test_head_and_embedding_are_one_matrix(subjects: Callable[[str, Scheme], Subject]) -> None:
    model = subjects("qwen2", "int4").stage(0, HEAD).model
    assert model.lm_head.weight_codes is model.model.embed_tokens.weight_codes
    assert model.lm_head.weight_codes.dtype == torch.int8


# --- what is quantised ---


def test_the_large_matrices_of_layers_and_head_are(subjects: Callable[[str, Scheme], Subject]) -> None:
    tensors = subjects("mixtral", "int4").tensors
    layer = "model.layers.1."
    assert {key.removeprefix(layer) for key in tensors if key.startswith(layer)} == {
        *(f"self_attn.{name}_proj.weight{end}" for name in "qkvo" for end in (CODES, SCALES)),
        *(f"mlp.experts.{name}{end}" for name in ("gate_up_proj", "down_proj") for end in (CODES, SCALES)),
        *("block_sparse_moe.gate.weight", "input_layernorm.weight", "post_attention_layernorm.weight"),
    }
    assert {key for key in tensors if not key.startswith("model.layers.")} == {
        *("model.embed_tokens.weight", "model.norm.weight", f"lm_head.weight{CODES}", f"lm_head.weight{SCALES}")
    }


@EVERY
@BOTH
def test_bytes_are_known_without_quantising(
    subjects: Callable[[str, Scheme], Subject], family: str, scheme: Scheme
) -> None:
    subject = subjects(family, scheme)
    chain = subject.checkpoint.chain
    assert (chain.quantization, chain.dtype) == (scheme, "float32")
    weights = [*(block.weight_bytes for block in chain.blocks), chain.common_bytes]
    assert weights == [sum(each.size for each in shard.tensors) for shard in (*subject.cut.blocks, subject.cut.common)]
    half = opened(subject.folder, scheme, "bfloat16").chain
    plain = sum(
        tensor.size for shard in subject.cut.all().values() for tensor in shard.tensors if not is_quantised(tensor.key)
    )
    assert chain.weight_bytes - half.weight_bytes == plain // 2
    assert (
        opened(subject.folder).chain.model_copy(update={"quantization": scheme, "blocks": chain.blocks}) == chain
    )  # only the weights are less


def test_a_model_without_a_matrix_that_fits(tmp_path: Path) -> None:
    made = config("llama", LAYERS)  # its MLP's 48 columns are no whole groups
    made.hidden_size, made.head_dim = 24, 6
    AutoModelForCausalLM.from_config(made).save_pretrained(tmp_path)
    opened(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be quantised: none of its layers' matrices has rows in 16s"):
        opened(tmp_path, "int8")


@BOTH
def test_a_stage_for_measuring_is_quantised_too(checkpoints: Callable[[str], Path], scheme: Scheme) -> None:
    for family in ("llama", "mixtral", "qwen2"):
        stage = Stage.random(read_config(str(checkpoints(family))), 1, 2, "bfloat16", quantization=scheme)
        linear = [module for module in stage.model.modules() if isinstance(module, QuantisedLinear)]
        assert len(linear) == (8 if family == "mixtral" else 14)
        plain = [name for name, _ in stage.model.named_parameters() if "proj" in name and name.endswith("weight")]
        assert plain == []


# --- products ---


@pytest.mark.parametrize("shape", [(16, 32), (48, 64), (1104, 96)])
@pytest.mark.parametrize("rows", [1, 3, kernels.MANY])
@pytest.mark.parametrize("dtype", DTYPES.values())
@BOTH
def test_kernels_multiply_by_what_is_stored(
    shape: tuple[int, int], rows: int, dtype: torch.dtype, scheme: Scheme
) -> None:
    codes, scales = specimen(shape, scheme)
    x = torch.randn(rows, shape[1])
    wanted = x @ restore(codes, scales).t()
    made = kernels.kernel(scheme, CPU, dtype)
    assert not isinstance(made, Unpacking)
    for each in (made, Unpacking()):
        found = each.multiply(x.to(dtype), *each.take(codes, scales))
        assert found.dtype == dtype
        assert (found.float() - wanted).norm() <= 0.01 * wanted.norm()


def specimen(shape: tuple[int, int], scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return quantise.quantised(torch.randn(shape), scheme)


@BOTH
def test_a_row_does_not_depend_on_the_others(scheme: Scheme) -> None:
    codes, scales = specimen((1104, 96), scheme)
    made = kernels.kernel(scheme, CPU, torch.float32)
    form = made.take(codes, scales)
    x = torch.randn(2 * kernels.MANY, 96)
    whole = made.multiply(x, *form)
    few = torch.cat([made.multiply(x[at : at + 8], *form) for at in range(0, len(x), 8)])
    assert torch.equal(few, torch.cat([made.multiply(row[None], *form) for row in x]))
    assert (whole == few).float().mean() > 0.999  # the sums differ in their order alone, which rounding seldom shows
    assert torch.equal(whole[: kernels.MANY], made.multiply(x[: kernels.MANY], *form))


def test_codes_may_lie_anywhere() -> None:
    """Mapped from a file, at whatever offset: the kernels load whole vectors."""
    codes, scales = specimen((48, 64), "int8")
    shifted = torch.empty(codes.numel() + 1, dtype=torch.int8)[1:].view_as(codes).copy_(codes)
    made = kernels.kernel("int8", CPU, torch.bfloat16)
    x = torch.empty(64 + 1, dtype=torch.bfloat16)[1:].view(1, 64).copy_(torch.randn(1, 64))
    assert torch.equal(
        made.multiply(x, *made.take(shifted, scales)), made.multiply(x.clone(), *made.take(codes, scales))
    )


@pytest.mark.parametrize("fault", ["absent", "wrong"])
@BOTH
def test_a_kernel_that_does_not_prove_itself_is_not_used(
    monkeypatch: pytest.MonkeyPatch, scheme: Scheme, fault: str
) -> None:
    class Broken(Unpacking):
        def multiply(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
            if fault == "absent":
                raise NotImplementedError
            return super().multiply(x, codes, scales) * 1.1

    monkeypatch.setattr(kernels, "_candidate", lambda *_: Broken())
    assert type(kernels.kernel.__wrapped__(scheme, CPU, torch.float32)) is Unpacking


# --- codes and scales ---


@pytest.mark.parametrize(("scheme", "most"), [("int8", 0.008), ("int4", 0.074)])
def test_the_error_is_as_small_as_was_measured(scheme: Scheme, most: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 1024)
    found = restore(*quantise.quantised(weight, scheme))
    assert (found - weight).norm() <= most * weight.norm()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-4, 1e4])
@BOTH
def test_weights_of_any_size(scheme: Scheme, scale: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 64) * scale
    weight[3] = 2 * scale  # a row without variety
    weight[5, 7] = 1000 * scale  # one that outweighs its neighbours
    codes, scales = quantise.quantised(weight, scheme)
    assert {end: (part.dtype, tuple(part.shape)) for end, part in ((CODES, codes), (SCALES, scales))} == {
        end: ({"I8": torch.int8, "U8": torch.uint8, "BF16": torch.bfloat16}[kind], shape)
        for end, (kind, shape) in stored((16, 64), scheme).items()
    }
    found = restore(codes, scales)
    step = weight.abs().amax(1, keepdim=True) / (100 if scheme == "int8" else 10)
    assert bool(((found - weight).abs() <= step + 1e-10).all())


@BOTH
def test_in_pieces_as_at_once(monkeypatch: pytest.MonkeyPatch, scheme: Scheme) -> None:
    weight = torch.randn(2, 48, 64)
    whole = quantise.quantised(weight, scheme)
    monkeypatch.setattr(quantise, "PIECE", 5 * 64)
    pieces = quantise.quantised(weight, scheme)
    assert all(torch.equal(*pair) for pair in zip(whole, pieces, strict=True))
    alone = quantise.quantised(weight[1], scheme)
    assert all(torch.equal(every[1], one) for every, one in zip(whole, alone, strict=True))


# --- cutting ---


@pytest.fixture
def llama(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy to be changed."""
    return shutil.copytree(checkpoints("llama"), tmp_path / "llama")


def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the weights that are quantised from now on."""
    names: list[str] = []
    real = quantise.Source._quantised

    def counted(source: Any, weight: Any, scheme: Scheme) -> Any:
        names.append(weight.name)
        return real(source, weight, scheme)

    monkeypatch.setattr(quantise.Source, "_quantised", counted)
    return names


def test_weights_are_quantised_once(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, cache_file, names = opened(llama, "int8"), tmp_path / "hashes.json", count(monkeypatch)
    first, seen = cut(checkpoint, cache_file), [*names]
    assert len(seen) == 7 * LAYERS + 1
    progress: list[int] = []
    assert cut(checkpoint, cache_file, progress.append) == first
    assert names == seen
    assert sum(progress) == opened(llama).chain.weight_bytes


def test_progress_counts_every_byte_that_is_read(llama: Path, tmp_path: Path) -> None:
    progress = list[int]()
    cut(opened(llama, "int4"), tmp_path / "hashes.json", progress.append)
    assert sum(progress) == opened(llama).chain.weight_bytes


def test_a_cut_that_was_broken_off_goes_on(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, cache_file, names = opened(llama, "int4"), tmp_path / "hashes.json", count(monkeypatch)
    real = shards._written

    def stop(name: str, file: Path) -> shards.Shard:
        if name == "layers.1":
            raise KeyboardInterrupt
        return real(name, file)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_written", stop)
        with pytest.raises(KeyboardInterrupt):
            cut(checkpoint, cache_file)
    broken = len(names)
    cut(checkpoint, cache_file)
    assert not any("layers.0" in name for name in names[broken:])
    assert any("layers.1" in name for name in names[broken:])


def test_another_precision_leaves_nothing_of_the_first(llama: Path, tmp_path: Path) -> None:
    cache_file = tmp_path / "hashes.json"
    cut(opened(llama, "int8"), cache_file)
    made = cut(opened(llama, "int4"), cache_file)
    written = {shard.sha256 for shard in made.blocks if any(is_quantised(tensor.key) for tensor in shard.tensors)}
    assert {file.stem for file in (tmp_path / "quantised").iterdir()} == written
    plain = cut(opened(llama), cache_file)
    assert not any(is_quantised(tensor.key) for shard in plain.all().values() for tensor in shard.tensors)


def test_a_changed_weight_changes_its_shard(llama: Path, tmp_path: Path) -> None:
    cache_file = tmp_path / "hashes.json"
    before = cut(opened(llama, "int4"), cache_file)
    tensor = opened(llama).tensors["model.layers.1.mlp.up_proj.weight"]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.start)
        file.write(b"\0\0\x80\x40")  # 4.0
    os.utime(tensor.file, ns=(0, 1))
    after = cut(opened(llama, "int4"), cache_file)
    assert [one.name for one, other in zip(before.blocks, after.blocks, strict=True) if one != other] == ["layers.1"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: os.truncate(file, 1000)])
def test_a_shard_that_is_damaged_is_made_again(llama: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    checkpoint, cache_file = opened(llama, "int8"), tmp_path / "hashes.json"
    first = cut(checkpoint, cache_file)
    harm(tmp_path / "quantised" / f"{first.blocks[1].sha256}.safetensors")
    assert cut(checkpoint, cache_file) == first


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(llama: Path, tmp_path: Path, value: float) -> None:
    weight = "model.layers.1.mlp.up_proj.weight"
    file = opened(llama).tensors[weight].file
    tensors = load_file(file)
    tensors[weight][3, 4] = value
    save_file(tensors, file)
    with pytest.raises(ModelError, match=f"{weight} cannot be quantised: some weights are no numbers"):
        cut(opened(llama, "int8"), tmp_path / "hashes.json")


def test_no_room_for_the_shards(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "quantised").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        cut(opened(llama, "int8"), tmp_path / "hashes.json")


# --- damaged shards ---

Change = Callable[[dict[str, torch.Tensor]], None]
WEIGHT = "model.layers.0.mlp.down_proj.weight"


def without(end: str) -> Change:
    return lambda tensors: void(tensors.pop(f"{WEIGHT}{end}"))


def replaced(end: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda tensors: tensors.update({f"{WEIGHT}{end}": make(tensors[f"{WEIGHT}{end}"])})


def void(_: object) -> None: ...


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (without(SCALES), f"there is no {WEIGHT}{SCALES}"),
        (without(CODES), f"lack 1 weights, first {WEIGHT}"),
        (replaced(CODES, lambda codes: codes[:16].clone()), rf"{WEIGHT}{CODES} is .* \[16, .*\], not .*"),
        (replaced(CODES, lambda codes: codes.short()), f"{WEIGHT}{CODES} is I16"),
        (replaced(SCALES, lambda scales: scales[:1].clone()), f"{WEIGHT}{SCALES} is BF16"),
        (replaced(SCALES, lambda scales: scales.float()), f"{WEIGHT}{SCALES} is F32"),
        (
            lambda tensors: tensors.update({f"model.layers.0.input_layernorm.weight{CODES}": torch.ones(32).char()}),
            "input_layernorm.weight is no matrix that may be quantised",
        ),
    ],
)
@BOTH
def test_damaged_shards_are_told(
    subjects: Callable[[str, Scheme], Subject], tmp_path: Path, scheme: Scheme, change: Change, what: str
) -> None:
    folder = shutil.copytree(subjects("llama", scheme).files([1]), tmp_path / "damaged")
    rewritten(folder, change)
    with pytest.raises(StageError, match=what):
        Stage.load(folder, 1, 1, "float32")


def rewritten(folder: Path, change: Change) -> None:
    tensors = {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_experts_quantised_by_half(subjects: Callable[[str, Scheme], Subject], tmp_path: Path) -> None:
    folder = shutil.copytree(subjects("mixtral", "int8").files([1]), tmp_path / "damaged")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        down = "model.layers.0.mlp.experts.down_proj"
        tensors[down] = tensors.pop(f"{down}{CODES}").float()
        del tensors[f"{down}{SCALES}"]

    rewritten(folder, change)
    with pytest.raises(StageError, match=r"experts\.down_proj is not quantised, but another of its matrices is"):
        Stage.load(folder, 1, 1, "float32")
