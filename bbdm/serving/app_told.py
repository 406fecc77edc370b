"""The fields of the app for what a network is told besides the source."""

from __future__ import annotations

from typing import Any

from bbdm.networks.conditions import ConditionsConfig

GUIDANCE = 6  # at most


def told_fields(further: ConditionsConfig) -> list[Any]:
    """The fields of guidance and of each class; none for a network that has no classes."""
    import gradio as gr

    if not further.classes:
        return []
    menus: list[Any] = []
    for name, classes in further.classes.items():
        names = map(str, range(classes)) if isinstance(classes, int) else classes
        choices = [*names, *(["none"] if name in further.drop else [])]
        menus.append(gr.Dropdown([(each, i) for i, each in enumerate(choices)], value=0, label=name.replace("_", " ")))
    counts = gr.Slider(
        0,
        GUIDANCE,
        1,
        step=0.5,
        label="How much it counts",
        info="Other numbers than 1 take twice the time.",
        visible=any(name in further.drop for name in further.classes),
    )
    return [counts, *menus]
