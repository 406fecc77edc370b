"""Parts: which picture of a file is meant that holds several, such as scenes of a microscope."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

WORD = re.compile(r"(scene|time|channel)=([0-9]{1,9})")


@dataclass(frozen=True)
class Part:
    """A picture of a file. All numbers begin at 0.

    Args:
        scene: the number of a scene, such as a well or a field of view; None where the file has one.
        time: the number of a time; None for all.
        channel: the number of a channel; None for all.
    """

    scene: int | None = None
    time: int | None = None
    channel: int | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """What is said of it, such as ``scene=2``."""
        return tuple(
            f"{word}={number}" for word, number in asdict(self).items() if number is not None
        )

    def __bool__(self) -> bool:
        return bool(self.words)

    def __str__(self) -> str:
        return ",".join(self.words)

    def check(self, scene: int = 1, time: int = 1, channel: int = 1) -> None:
        """Raise ValueError for a number that a file does not have.

        Args:
            scene: how many scenes it has.
            time: how many times it has.
            channel: how many channels it has.
        """
        for word, count in {"scene": scene, "time": time, "channel": channel}.items():
            number = getattr(self, word)
            if number is not None and number >= count:
                has = f"{count} {word}s, counted from 0" if count > 1 else f"1 {word}, number 0"
                raise ValueError(f"it has {has}: there is no {word}={number}")


WHOLE = Part()  # of a file that is one picture


def read_part(text: str) -> Part:
    """The part that a text such as ``scene=2,channel=1`` says.

    Raises:
        ValueError: it has another form.
    """
    numbers: dict[str, int] = {}
    for word in text.split(","):
        match = WORD.fullmatch(word)
        if match is None or match[1] in numbers:
            form = "scene=N, time=N and channel=N, each at most once, N from 0, with commas between"
            raise ValueError(f"what follows # must be of {form}; got {text!r}")
        numbers[match[1]] = int(match[2])
    return Part(**numbers)
