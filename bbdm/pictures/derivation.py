"""What made a picture, as files of results say inside: nobody then takes one for a photograph or a scan."""

from __future__ import annotations

from dataclasses import dataclass

from bbdm.base.sizes import number_of

# of the entry, where a format leaves the name open: DICOM's word for it
NAME = "DerivationDescription"
BEGIN = "made by bbdm"  # of the text
DIGITS = 10  # of a model's hash


@dataclass(frozen=True)
class Derivation:
    """How a network made a picture.

    Args:
        model: SHA-256 of the network's weights, in hexadecimal digits, of which the first are written.
        solver: of the bridge's equation.
        steps: the number of network calls.
        seeds: of the sample; of a map, of all samples that it is of.
    """

    model: str
    solver: str
    steps: int
    seeds: tuple[int, ...]

    @property
    def text(self) -> str:
        """One line, such as ``made by bbdm: model 0123456789, seed 7, 5 steps, dpm2m``.

        Of one seed and a solver of this library it fits into the 80 bytes of a NIfTI's description.
        """
        seeds = f"seed {self.seeds[0]}"
        further = len(self.seeds) - 1
        if further:
            seeds = f"{seeds} and {further} more"
        return f"{BEGIN}: model {self.model[:DIGITS]}, {seeds}, {number_of(self.steps, 'step')}, {self.solver}"
