"""What a recipe asks of models, tokenizers and data is checked before any text is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import CONFIGS, tiny
from kernel import lay_out, recipe, tokenizer

from limbeck.assemble import checks, design
from limbeck.errors import UserError
from limbeck.recipe.load import load


def test_labels_need_masks(tmp_path: Path) -> None:
    table = recipe(lay_out(tmp_path), tmp_path / "run", settings={"a": {"terms": [{"loss": "cross_entropy"}]}})
    design.design(load(table))
    table["data"] |= {"positions": "all", "masking": {"mode": "none"}}
    with pytest.raises(UserError, match=r"settings\.a: without masking there are no labels"):
        design.design(load(table))


def test_a_causal_model_has_no_masked_positions(tmp_path: Path) -> None:
    table = recipe(lay_out(tmp_path), tmp_path / "run", settings={"a": {"terms": [{"loss": "forward_kl"}]}})
    tiny("gpt2").float().save_pretrained(tmp_path / "gpt2")
    tokenizer().save_pretrained(tmp_path / "gpt2")
    table["models"]["teacher"] = str(tmp_path / "gpt2")
    with pytest.raises(UserError, match="a causal model is never masked"):
        design.design(load(table))
    table["data"]["positions"] = "all"
    assert design.design(load(table)).causal


def test_every_token_has_a_position_and_an_embedding() -> None:
    bert, roberta = CONFIGS["bert"](), CONFIGS["roberta"]()
    roberta.pad_token_id = 1  # as in the real ones: positions begin at 2
    checks.fits(bert, bert.max_position_embeddings, bert.vocab_size)
    checks.fits(roberta, roberta.max_position_embeddings - 2, roberta.vocab_size)
    with pytest.raises(UserError, match=r"data\.max_length: 511 tokens are more than the 510 positions"):
        checks.fits(roberta, 511, 10)
    with pytest.raises(UserError, match="the tokenizer has 101 tokens and the bert model 100"):
        checks.fits(bert, 8, 101)


def test_embedding_terms_have_projections_of_their_own(tmp_path: Path) -> None:
    terms = [
        {"loss": "mse", "tap": "embedding", "name": "near"},
        {"loss": "cosine", "tap": "embedding", "name": "turned"},
    ]
    plan = design.design(load(recipe(lay_out(tmp_path), tmp_path / "run", settings={"a": {"terms": terms}})))
    assert [pair.projection for term in plan.terms["a"] for pair in term.pairs] == ["near:", "turned:"]
