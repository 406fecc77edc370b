"""The site's own plugins: files from outside docs/, formulas as MathML, links and fields in docstrings.

Formulas become MathML when the site is built, so a browser needs no script and no network for them.
"""

from __future__ import annotations

import html
import importlib
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.plugins")
ROOT = Path(__file__).parent.parent
PAGES = {  # a page of the site: its file in the repository
    "demo.md": "bbdm/demo/README.md",
    "results.md": "benchmarks/RESULTS.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
# pages of the site, and their folders
NOTEBOOKS = {"own_pictures.ipynb": "examples", "volumes.ipynb": "examples"}
DEMO = ROOT / "examples/web/dist"  # what npm run build writes, if it ran
DEMO_PAGE, DEMO_PLACE = "try.md", "web"  # the page that shows it, and its folder on the site
# and its caption, where it was not built
DEMO_PICTURE = re.compile(r"!\[[^\]]*\]\(figures/web\.png\)\n\n\*[^*]+\*\n")
SHOWN = f"""<iframe class="demo" src="{DEMO_PLACE}/index.html" title="The page"></iframe>

<a href="{DEMO_PLACE}/index.html" target="_blank">Open it in a window of its own</a>
"""
FIGURES = ("benchmarks/*.png", "benchmarks/*.svg", "examples/demo/*.png")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#:\s]+)(#[^)]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)
COMMENT = re.compile(r"  # (.*)$")  # after a field
COMMENT_LINE = re.compile(r" *# (.*)$")  # of those above it
LISTED = re.compile(r"^(Args|Attributes):\n", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")


@event_priority(100)  # before the plugin that runs notebooks looks for them
def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and figures that are outside docs/."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    # as files of their own folder, since their plugin reads them there
    for page, folder in NOTEBOOKS.items():
        files.append(File(page, str(ROOT / folder), config.site_dir, config.use_directory_urls))
    for pattern in FIGURES:
        for figure in ROOT.glob(pattern):
            name = figure.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(figure)))
    for path in filter(Path.is_file, DEMO.rglob("*")):
        name = f"{DEMO_PLACE}/{path.relative_to(DEMO).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    name = page.file.src_uri
    if name == DEMO_PAGE and (DEMO / "index.html").is_file():
        markdown = DEMO_PICTURE.sub(SHOWN, markdown)
    folder = posixpath.dirname(PAGES.get(name, f"docs/{name}"))

    def on_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        places = {source: page for page, source in PAGES.items()} | {"README.md": "index.md"}
        places |= {f"{folder}/{page}": page for page, folder in NOTEBOOKS.items()}
        place = places.get(target, target.removeprefix("docs/"))
        return (
            f"{link[1]}{posixpath.relpath(place, posixpath.dirname(name) or '.')}{link[3] or ''})"
        )

    return LINK.sub(on_site, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Warns of a page that fetches from the network; with --strict, this ends the build."""
    for fetched in re.findall(
        r'<(?:script|link|img|iframe)[^>]* (?:src|href)="(?:https?:)?//[^"]+', output
    ):
        log.warning("%s fetches from the network: %s", page.file.src_uri, fetched)
    return output


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML."""

    def mathml(formula: re.Match[str]) -> str:
        display = "inline" if formula[1] == "span" else "block"
        return f"<{formula[1]} class='formula'>{convert(html.unescape(formula[2]), display=display)}</{formula[1]}>"

    return FORMULA.sub(mathml, content)


class Roles(griffe.Extension):
    """Makes links of the roles in docstrings, such as :class:`~bbdm.bridges.Bridge`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if not obj.docstring:
            return

        def link(role: re.Match[str]) -> str:
            first, _, rest = role[2].partition(".")
            try:  # a name in the module that the docstring is in
                target = ".".join(filter(None, [obj.resolve(first), rest]))
            except griffe.NameResolutionError:
                target = role[2]
            shown = role[2].rsplit(".", 1)[-1] if role[1] else role[2]
            return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'

        obj.docstring.value = ROLE.sub(link, obj.docstring.value)


class Fields(griffe.Extension):
    """Lists a dataclass's fields with what is said of each: a setting's help, or the field's comment."""

    def on_attribute_instance(
        self, *, node: Any, attr: griffe.Attribute, agent: Any, **_: Any
    ) -> None:
        """Keeps a field's comment, and shows a setting's default in place of the call."""
        call = attr.value if isinstance(attr.value, griffe.ExprCall) else None
        # (default, help), and (help) or (help, default)
        if call and str(call.function) in ("setting", "position"):
            words: list[Any] = [
                each for each in call.arguments if not isinstance(each, griffe.ExprKeyword)
            ]
            attr.value = (
                words[0] if str(call.function) == "setting" else next(iter(words[1:]), None)
            )
            attr.labels.add("setting")
            return
        lines = agent.code.splitlines()
        if comment := COMMENT.search(lines[node.end_lineno - 1]):
            attr.extra["bbdm"]["comment"] = comment[1]
            return
        above: list[str] = []
        for line in reversed(lines[: node.lineno - 1]):
            if not (comment := COMMENT_LINE.match(line)):
                break
            above.insert(0, comment[1])
        if above:
            attr.extra["bbdm"]["comment"] = " ".join(above)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Adds the list to the docstring of a dataclass that has none; a Config has to explain all fields."""
        # the label is inherited
        own = any("dataclass" in str(decorator.value) for decorator in cls.decorators)
        if not own or not cls.docstring or LISTED.search(cls.docstring.value):
            return
        said: dict[str, str] = {}
        for attr in (
            attr for each in (*reversed(cls.mro()), cls) for attr in each.attributes.values()
        ):
            if "setting" in attr.labels:
                fields = getattr(
                    importlib.import_module(cls.module.path), cls.name
                ).__dataclass_fields__
                if "help" in fields[attr.name].metadata:  # else a subclass has it as no flag
                    said[attr.name] = fields[attr.name].metadata["help"]
            elif "comment" in attr.extra["bbdm"] and "instance-attribute" in attr.labels:
                said[attr.name] = attr.extra["bbdm"]["comment"]
            elif "instance-attribute" in attr.labels and cls.name.endswith("Config"):
                log.warning("%s: no explanation of %s", cls.path, attr.name)
        if said:
            text, _, errors = cls.docstring.value.partition("\n\nRaises:\n")
            entries = "".join(f"\n    {name}: {what}" for name, what in said.items())
            cls.docstring.value = f"{text}\n\nArgs:{entries}" + (
                f"\n\nRaises:\n{errors}" if errors else ""
            )
