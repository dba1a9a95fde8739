"""GGUF, the file of llama.cpp, for decoder families that transformers' own reader of it knows.

Its layout is that of llama.cpp's converter (convert_hf_to_gguf.py): the rows of llama's queries and keys are turned from halves into
pairs, GPT-2's matrices are stored outputs first. Weights are F32; those of a quantised student are Q8_0, blocks of 32 bytes with a
scale in fp16, where 32 divides a row.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.errors import UserError
from limbeck.models import pretrained
from limbeck.models.compressed import Compressed, Grid, from_grid, on_grid
from limbeck.text.tokenise import serialised
from limbeck.tools.formats import memory
from limbeck.tools.formats.format import Format, Runner

FILE = "model.gguf"
KNOWN = ("gpt2", "llama", "qwen3")
BLOCK = 32  # weights of a row that share a scale
GRIDS = "limbeck_grids"  # of the twin: layer -> its grid


def refusal(config: PretrainedConfig, compressed: Compressed) -> str | None:
    """Why not."""
    if config.model_type not in KNOWN:
        return (
            f"gguf is for the decoders {', '.join(KNOWN)}, and this is {config.model_type}; export to onnx or torchao"
        )
    if config.problem_type:
        return "gguf has no place for a sequence classifier; export to onnx"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return f"its positions are {rope['rope_type']}, which is not written to gguf here; export to onnx or torchao"
    if odd := [name for name in compressed.quantised if name.rpartition(".")[0] in compressed.factors]:
        return f"{odd[0]} is quantised and one of two factors, which gguf does not have; export to onnx-int8"
    return None


@torch.no_grad()
def twin(model: PreTrainedModel, compressed: Compressed) -> PreTrainedModel:
    """The same model with the weights that the bytes of the file give; factors are multiplied out."""
    grids = memory.grids_of(model, compressed) if compressed.quantised else {}
    grids = {name: grid for name, grid in grids.items() if _fits(memory.matrix(model.get_submodule(name)), grid)}
    for name, grid in grids.items():
        whole, scale = _bytes(memory.matrix(model.get_submodule(name)), grid)
        memory.matrix(model.get_submodule(name)).copy_(from_grid(whole, scale))
    setattr(model, GRIDS, grids)
    return model


def _fits(matrix: Tensor, grid: Grid) -> bool:
    return matrix.shape[1] % BLOCK == 0 and (grid.group or BLOCK) % BLOCK == 0


def _bytes(matrix: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Whole numbers, and scales that fp16 holds."""
    whole, scale = on_grid(matrix, grid)
    return whole, scale.half().float()


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes `model.gguf`: what the config says, the vocabulary where it is one that llama.cpp knows, the weights."""
    gguf: Any = importlib.import_module("gguf")
    config: Any = model.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(folder / FILE, config.model_type)
    _say(writer, config)
    _say_vocabulary(gguf, writer, tokenizer, config.vocab_size)
    grids: dict[str, Grid] = getattr(model, GRIDS)
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        called = names.get_name(module)
        if called is None:
            raise UserError(f"gguf has no name for {name}; export to onnx or torchao")
        weight = memory.matrix(model.get_submodule(module)) if leaf == "weight" else parameter
        order = _order(called, weight, config)
        if module in grids and leaf == "weight":
            whole, scale = (each[order] for each in on_grid(weight, grids[module]))
            writer.add_tensor(f"{called}.weight", _blocks(whole, scale), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{called}.{leaf}", weight.detach()[order].float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _say(writer: Any, config: Any) -> None:
    """What the config says, by the names of llama.cpp."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)


def _say_vocabulary(gguf: Any, writer: Any, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """The tokens, of a kind of tokenizer that llama.cpp has: byte-level BPE, or SentencePiece's."""
    table = json.loads(serialised(tokenizer))["model"]
    pieces = table["type"] == "Unigram" or bool(table.get("byte_fallback"))
    if table["type"] not in ("BPE", "Unigram"):
        return
    kinds = dict.fromkeys(tokenizer.all_special_ids, gguf.TokenType.CONTROL)
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    kinds |= {n: gguf.TokenType.BYTE for n, token in known.items() if pieces and len(token) == 6 and token[:3] == "<0x"}
    kinds |= {number: gguf.TokenType.UNUSED for number in range(size) if number not in known}
    if isinstance(tokenizer.unk_token_id, int):
        kinds[tokenizer.unk_token_id] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_token_list([known.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([kinds.get(number, gguf.TokenType.NORMAL) for number in range(size)])
    if pieces:
        scores = dict(enumerate(score for _, score in table["vocab"])) if table["type"] == "Unigram" else {}
        writer.add_token_scores([float(scores.get(number, -number)) for number in range(size)])
    else:
        writer.add_tokenizer_pre("default")
        merges = table["merges"]
        writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)


def _order(called: str, weight: Tensor, config: Any) -> Tensor:
    """The rows in the order of the file: of llama's queries and keys the halves of a head one by one from each."""
    rows = torch.arange(len(weight))
    kind = called.rpartition(".")[2]
    if config.model_type != "llama" or kind not in ("attn_q", "attn_k"):
        return rows
    heads = config.num_attention_heads if kind == "attn_q" else config.num_key_value_heads
    return rows.reshape(heads, 2, -1).swapaxes(1, 2).flatten()


def _blocks(whole: Tensor, scale: Tensor) -> np.ndarray:
    """Q8_0: in each block of 32 the scale in fp16, then the whole numbers, as bytes `[rows, bytes of a row]`."""
    rows, columns = whole.shape
    blocks = columns // BLOCK
    scales = scale.half().repeat_interleave(blocks // scale.shape[1], 1).unsqueeze(-1).numpy().view(np.uint8)
    numbers = whole.contiguous().reshape(rows, blocks, BLOCK).numpy().view(np.uint8)
    return np.concatenate([scales, numbers], axis=-1).reshape(rows, -1)


def runner(folder: Path) -> Runner:
    """Answers by transformers, which reads the file's weights; what its reader does not take from the file is in config.json."""
    config = pretrained.config_of(pretrained.Source(source=str(folder)))
    how: dict[str, Any] = {"gguf_file": FILE, "config": config, "dtype": torch.float32}
    with pretrained.quiet():
        model = pretrained.kind_of(config).from_pretrained(folder, **how)
    return memory.of_model(model.eval())


def usage(config: PretrainedConfig, names: Sequence[str]) -> str:
    """Five lines."""
    return """from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # and gguf, which is installed
model = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", config=AutoConfig.from_pretrained("."))
tokenizer = AutoTokenizer.from_pretrained(".")
ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
print(tokenizer.decode(model.generate(ids, max_new_tokens=20)[0]))"""


GGUF = Format(
    name="gguf",
    about="GGUF, the file of llama.cpp, read back by transformers.",
    packages=("gguf",),
    bound=1e-4,
    refusal=refusal,
    twin=twin,
    write=write,
    runner=runner,
    usage=usage,
)
