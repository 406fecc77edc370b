"""How the app looks, and its parts for screen readers. Nothing here knows of Gradio or torch."""

from __future__ import annotations

from typing import Any

COLOURS: list[str | tuple[str, float]] = [
    "black",
    "white",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
]  # of the brush
GALLERY: dict[str, Any] = {  # shows pictures whole, and selects one
    "height": "auto",
    "object_fit": "contain",
    "allow_preview": False,
    "buttons": [],
    "interactive": False,
}
CSS = """
.gradio-container, .gradio-container .fillable { width: 100%; max-width: 1100px !important; margin: auto !important }
footer { display: none !important }
.source img { width: 100%; height: 100%; object-fit: contain }
.block.status { min-height: 3.2em }
.status progress { display: block; width: 100%; height: .6em; appearance: none; border: 0; border-radius: .3em }
.status progress, .status ::-webkit-progress-bar { background: var(--border-color-primary); border-radius: .3em }
.status ::-webkit-progress-value { background: var(--color-accent); border-radius: .3em }
.status ::-moz-progress-bar { background: var(--color-accent); border-radius: .3em }
.gallery .grid-wrap { min-height: 7.5em; max-height: 40em; overflow-y: auto }
.gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(var(--cell), 1fr)) !important }
.gallery .caption-label { font-size: .75em; max-width: 100%; padding: 0 .4em }
.results { --cell: min(180px, 45%) }
.examples { --cell: 84px }
body:not(.dark) [role=tab][aria-selected=true] { color: var(--primary-600) }
.legend { margin-top: .4em }
.legend .scale { display: block; height: 1em; border: 1px solid var(--border-color-primary); border-radius: .3em;
    background: linear-gradient(to right, #000, #fff) }
.legend .ends { display: flex; justify-content: space-between }
.about { font-size: .8em; overflow-wrap: anywhere }
"""
NAMES = """<script>
new MutationObserver(() => {  // Gradio names a result "Thumbnail 1 of 4", and others unlike their text
    const wrong = "div.empty[aria-label], button.upload-container[aria-label]";
    document.querySelectorAll(wrong).forEach((each) => each.removeAttribute("aria-label"));
    for (const result of document.querySelectorAll(".results button[aria-label^=Thumbnail]")) {
        result.removeAttribute("aria-label");
        result.querySelector("img")?.setAttribute("alt", "");
    }
}).observe(document, {subtree: true, childList: true});
</script>"""
