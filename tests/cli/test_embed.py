"""Texts as tokens, by encoders so small that the tests make them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from bbdm.cli import embed

WORDS = ["[PAD]", "[UNK]", "[END]", "a", "cat", "on", "the", "mat"]
SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
SMALL: dict[str, Any] = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 6}
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def save_tokenizer(folder: Path) -> None:
    """Words at spaces, and an end."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing("$A [END]", special_tokens=[("[END]", 2)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=6, **names)
    fast.save_pretrained(folder)


def clip(folder: Path) -> Any:
    """The text encoder of a CLIP that is saved whole."""
    text = transformers.CLIPTextConfig(**SMALL, **IDS).to_dict()
    vision = {**SIZES, "image_size": 4, "patch_size": 2}
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=4))
    whole.save_pretrained(folder)
    return whole.text_model


def t5(folder: Path) -> Any:
    """The encoder of a T5 that is saved whole."""
    ids: dict[str, Any] = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    config = transformers.T5Config(vocab_size=len(WORDS), d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, **ids)
    whole = transformers.T5ForConditionalGeneration(config)
    whole.save_pretrained(folder)
    return whole.encoder


def bert(folder: Path) -> Any:
    whole = transformers.BertModel(transformers.BertConfig(**SMALL, pad_token_id=0))
    whole.save_pretrained(folder)
    return whole


@pytest.mark.parametrize("kind", [pytest.param(clip, marks=pytest.mark.nightly), t5, bert])
def test_rows_are_the_hidden_states_of_each_text_alone(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = kind(tmp_path / "model").eval()
    save_tokenizer(tmp_path / "model")
    (tmp_path / "texts.csv").write_text('name,text\nx/1,a cat\n2,"a cat on the mat, the mat"\n3,\n')
    embed.main([str(tmp_path / "texts.csv"), str(tmp_path / "out"), "--model", str(tmp_path / "model"), "-b", "2"])
    for name, tokens in {"x/1": [3, 4, 2], "2": [3, 4, 5, 6, 7, 2], "3": [2]}.items():
        found = np.load(tmp_path / "out" / f"{name}.npy")
        with torch.inference_mode():
            (wanted,) = encoder(torch.tensor([tokens])).last_hidden_state.numpy()
        assert (found.dtype, found.shape) == (np.float32, (len(tokens), 8))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_files_that_are_there_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    words = [str(tmp_path / "texts.csv"), str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    (tmp_path / "texts.csv").write_text("1,a cat\n2,the mat\n")
    embed.main([*words, "--length", "2"])
    assert np.load(tmp_path / "out" / "1.npy").shape == (2, 8)
    np.save(tmp_path / "out" / "1.npy", np.zeros(1))
    (tmp_path / "out" / "2.npy").unlink()
    embed.main([*words, "--length", "2"])
    assert capsys.readouterr().out.splitlines()[-1] == f"1 texts in {tmp_path / 'out'}, and 1 that were there"
    assert np.load(tmp_path / "out" / "1.npy").shape == (1,)
    with pytest.raises(ValueError, match=r"out has tokens of other settings \(length 2, now 77\): give another"):
        embed.main(words)
    embed.main([*words, "--overwrite"])
    assert np.load(tmp_path / "out" / "1.npy").shape == (3, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,a,cat", "line 1 of .* must be NAME,\"TEXT\", got '1,a,cat'"),
        ("1,a\n../2,cat", "line 2 of .* must be NAME"),
        ("1,a\n1,cat", "line 2 of .*: '1' is there twice"),
        ("name,text\n", "there are no texts in"),
    ],
)
def test_lines_of_another_form_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        embed.main([str(tmp_path / "texts.csv"), str(tmp_path / "out"), "--model", "none"])
