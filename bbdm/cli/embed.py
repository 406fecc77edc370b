"""Embed texts as tokens for a network: bbdm embed TEXTS.csv OUT_FOLDER --model MODEL [flags].

TEXTS.csv has lines of a picture's name and its text. OUT_FOLDER/NAME.npy gets the encoder's last hidden
states, (L, D) float32, a row for each token of the text, by the transformers library. `bbdm train --tokens
text=OUT_FOLDER` reads them. If it ends early, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbdm.base import manifest, optional
from bbdm.base.atomic import make_folder, remove_all_leftovers, write_atomically
from bbdm.base.scripts import Parser, is_shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ABOUT = "embed.json"  # what made the files of a folder
HEADER = ["name", "text"]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(__doc__, prog="bbdm embed")
    flag = parser.add_argument
    flag("texts", type=Path, help="a CSV of lines NAME,TEXT")
    flag("output_dir", type=Path, help="the folder of NAME.npy")
    flag("--model", required=True, help="a text encoder with its tokenizer: a folder, or a name on the Hub")
    flag("--length", type=int, default=77, help="tokens of a text at most; longer texts are cut")
    flag("-b", "--batch_size", type=int, default=32, help="texts at a time")
    flag("--device", help="where to compute; cuda if unset and there is one, else cpu")
    flag("--overwrite", action="store_true", help="make existing files again")
    flag("--show_verbose", action="store_true", help="a progress bar, as on a terminal")
    flag("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.length < 1 or args.batch_size < 1:
        parser.error(f"--length and --batch_size must be at least 1, got {args.length} and {args.batch_size}")
    return args


def read_texts(path: Path) -> dict[str, str]:
    """Texts by name, from lines ``name,text``; the first may be that header.

    Raises:
        ValueError: a line has another form, or a name is no relative path, or there twice.
    """
    from bbdm.data.tar import is_inside

    found: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row or (number == 1 and [cell.strip().lower() for cell in row] == HEADER):
                continue
            name = row[0].strip()
            if len(row) != 2 or not name or not is_inside(name):
                raise ValueError(f'line {number} of {path} must be NAME,"TEXT", got {",".join(row)!r}')
            if name in found:
                raise ValueError(f"line {number} of {path}: {name!r} is there twice")
            found[name] = row[1]
    if not found:
        raise ValueError(f"there are no texts in {path}")
    return found


class Encoder:
    """A text encoder of transformers, in float32."""

    def __init__(self, model: str, length: int, device: str | None) -> None:
        transformers = optional.package("transformers", "bbdm embed")
        import torch

        from bbdm.execution.device import find_device

        self._device = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        config = transformers.AutoConfig.from_pretrained(model)
        kind = transformers.AutoModel
        if hasattr(config, "text_config"):  # of pictures too, such as CLIP: CLIPConfig has CLIPTextModel
            kind = getattr(transformers, type(config).__name__.removesuffix("Config") + "TextModel", kind)
        elif getattr(config, "is_encoder_decoder", False):
            kind = transformers.AutoModelForTextEncoding  # without the decoder, such as T5
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._length = min(length, self._tokenizer.model_max_length)
        self._network = kind.from_pretrained(model).to(self._device, torch.float32).eval()

    def __call__(self, texts: list[str]) -> Iterator[npt.NDArray[np.float32]]:
        """The last hidden states of each text, (L, D), without those of padding."""
        import torch

        how: dict[str, Any] = {"padding": True, "truncation": True, "max_length": self._length}
        given = self._tokenizer(texts, return_tensors="pt", **how).to(self._device)
        names = ("input_ids", "attention_mask")
        with torch.inference_mode():
            states = self._network(**{name: given[name] for name in names}).last_hidden_state
        for rows, used in zip(states.cpu(), given["attention_mask"].cpu().bool(), strict=True):
            yield rows[used].numpy()


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    args = parse(argv)
    optional.package("transformers", "bbdm embed")
    texts = read_texts(args.texts)
    from tqdm.auto import tqdm

    from bbdm.pictures.formats.numpy_files import encoded

    make_folder(args.output_dir)
    remove_all_leftovers(args.output_dir)
    about = {"model": args.model, "length": args.length}
    place = args.output_dir / ABOUT
    if place.exists() and not args.overwrite:
        with manifest.reading(place, f"delete {args.output_dir}") as content:
            differing = manifest.differences(content, about)
        if differing:
            raise ValueError(f"{args.output_dir} has tokens of other settings ({differing}): give another folder")
    manifest.write(place, about)
    files = {name: args.output_dir / f"{name}.npy" for name in texts}
    todo = [name for name, path in files.items() if args.overwrite or not path.exists()]
    encode = Encoder(args.model, args.length, args.device) if todo else None
    with tqdm(total=len(todo), unit="text", disable=not is_shown(args.show_verbose, args.quiet)) as bar:
        for start in range(0, len(todo) if encode else 0, args.batch_size):
            names = todo[start : start + args.batch_size]
            assert encode is not None
            for name, rows in zip(names, encode([texts[name] for name in names]), strict=True):
                write_atomically(files[name], partial(Path.write_bytes, data=encoded(rows)))
                bar.update()
    print(f"{len(todo)} texts in {args.output_dir}, and {len(files) - len(todo)} that were there")
