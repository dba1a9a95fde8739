"""A tiny random model of every family that limbeck knows."""

from __future__ import annotations

import torch
import transformers as tf
from transformers import PreTrainedModel

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}

CONFIGS = {
    "bert": lambda: tf.BertConfig(**SIZES),
    "roberta": lambda: tf.RobertaConfig(**SIZES, **TOKENS),
    "distilbert": lambda: tf.DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=48, vocab_size=100),
    "electra": lambda: tf.ElectraConfig(**SIZES, embedding_size=16),
    "modernbert": lambda: tf.ModernBertConfig(**SIZES, **TOKENS, cls_token_id=1, sep_token_id=2, local_attention=4),
    "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_inner=48, vocab_size=100, **TOKENS),
    "llama": lambda: tf.LlamaConfig(**SIZES, **TOKENS, **GROUPED),
    "qwen3": lambda: tf.Qwen3Config(**SIZES, **TOKENS, **GROUPED),
}
CAUSAL = {"gpt2", "llama", "qwen3"}


def tiny(name: str, attention: str = "sdpa", seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random model in evaluation mode, the same for the same seed, with sharp enough attention to tell maps apart."""
    kind = tf.AutoModelForCausalLM if name in CAUSAL else tf.AutoModelForMaskedLM
    torch.manual_seed(seed)
    model = kind.from_config(CONFIGS[name](), attn_implementation=attention).eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
