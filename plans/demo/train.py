"""Makes the demo model: a small Llama that has read docs/primer.md and answers questions about it.

Learns a byte-level BPE tokenizer from the text, then trains the model on it from nothing, in about twenty minutes on
one CPU core, and writes a folder in the layout of any Hugging Face checkpoint. It is meant to know its text by heart:
a demo then shows readable English, and a split that computes something else than the whole model is seen at a glance.
The same seed, text and library versions on the same kind of processor give the same model.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
PRIMER = HERE.parent.parent / "docs" / "primer.md"

BEGIN, END = "<s>", "</s>"
VOCABULARY = 1024
CONTEXT = 1024
SEQUENCE = 256  # tokens of a training sequence; every eighth step uses the full context instead
BATCH_TOKENS = 2048
PEAK_RATE = 2e-3
WARMUP = 0.04  # share of the steps
SEED = 20

# A conversation in the form of the text: "Question: ...", a line break, "Answer: ...", the end token.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token }}Question: {{ message['content'] | trim }}\nAnswer:"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] | trim }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Text:
    """What is learned: running prose, each section between BEGIN and END, and pairs of a question and its answer."""

    prose: str
    pairs: tuple[tuple[str, str], ...]
    starts: tuple[tuple[int, ...], tuple[int, ...]]  # where a sentence begins in the prose, where a word begins

    @property
    def whole(self) -> str:
        return self.prose + "".join(spell(pair) for pair in self.pairs)


def spell(pair: tuple[str, str]) -> str:
    return f"{BEGIN}Question: {pair[0]}\nAnswer: {pair[1]}{END}"


def read(path: Path) -> Text:
    """Prose and questions of a Markdown file; drawings, tables and headings are left out."""
    source = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL).replace("**", "")
    sections: list[str] = []
    pairs: list[tuple[str, str]] = []
    for section in re.split(r"^#+ .*$", source, flags=re.MULTILINE):
        paragraphs = [part.strip() for part in re.split(r"\n\s*\n", section) if part.strip()]
        asked = [re.fullmatch(r"Question: (.+)\nAnswer: (.+)", part) for part in paragraphs]
        pairs += [(match.group(1), match.group(2)) for match in asked if match]
        told = [
            part for part, match in zip(paragraphs, asked, strict=True) if not match and not part.startswith(("|", ">"))
        ]
        if told:
            sections.append("\n\n".join(told))
    prose = "".join(BEGIN + section + END for section in sections)
    sentences = [match.end() for match in re.finditer(r"<s>|[.?:] |\n\n", prose)]
    words = [match.end() for match in re.finditer(r"<s>|\s", prose)]
    return Text(prose, tuple(pairs), (tuple(sentences), tuple(words)))


def learn_tokenizer(text: Text) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain = text.whole.replace(BEGIN, "").replace(END, "\n\n")
    tokenizer.train_from_iterator([plain], trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    return LlamaForCausalLM(config)


class Reader:
    """Draws training sequences as a user will prompt: BEGIN, then a question or the middle of the text."""

    def __init__(self, text: Text, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self.random = Random(seed)  # noqa: S311 - repeatable, not secret

    def batch(self, rows: int, length: int) -> torch.Tensor:
        return torch.tensor([self._row(length) for _ in range(rows)])

    def _row(self, length: int) -> list[int]:
        letters = 8 * length  # a token is about three letters here: more than enough
        if self.random.random() < 0.3:
            piece = "".join(self._question() for _ in range(length // 16))
        else:
            start = self.random.choice(self.text.starts[self.random.random() < 0.3])
            piece = BEGIN + (self.text.prose[start:] + self.text.prose)[:letters]
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False).ids
        return ids[:length]

    def _question(self) -> str:
        question, answer = self.random.choice(self.text.pairs)
        if self.random.random() < 0.2:  # as people type
            question = question.lower().rstrip("?")
        return spell((question, answer))


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    warmup = max(1, int(WARMUP * steps))
    if step < warmup:
        return PEAK_RATE * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train(model: LlamaForCausalLM, reader: Reader, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    began, mean = time.monotonic(), math.nan
    model.train()
    for step in range(steps):
        length = CONTEXT if step % 8 == 7 else SEQUENCE
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        ids = reader.batch(BATCH_TOKENS // length, length)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.item() if math.isnan(mean) else 0.95 * mean + 0.05 * loss.item()
        if step % 50 == 49 or step == steps - 1:
            print(f"step {step + 1}/{steps}  loss {mean:.3f}  {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, default=HERE / "model", help="folder to write")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--text", type=Path, default=PRIMER, help="Markdown file to learn")
    wish = parser.parse_args()
    torch.set_num_threads(1)  # the order of sums, and so the model, depends on it
    torch.manual_seed(SEED)
    text = read(wish.text)
    tokenizer = learn_tokenizer(text)
    model = build_model(tokenizer)
    print(f"{len(text.whole)} letters, {len(text.pairs)} questions, {model.num_parameters()} parameters", flush=True)
    train(model, Reader(text, tokenizer, SEED), wish.steps)
    model.generation_config.do_sample = False
    model.eval().save_pretrained(wish.out)
    tokenizer.save_pretrained(wish.out, save_jinja_files=False)


if __name__ == "__main__":
    main()
