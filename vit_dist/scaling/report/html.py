"""One style sheet for all pages, and how their templates are filled: what was read steers no reader's program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_dist.core.terminal import clean
from vit_dist.scaling.report.figure_style import Drawing, for_page

_STYLE_SHEET = Path(__file__).parent / "page.css"


def shown_figures(drawings: Sequence[Drawing], files: Mapping[str, bytes]) -> list[dict[str, str]]:
    """Figures as templates show them, out of the files that were written of them, by name."""
    return [
        {
            "name": drawing.name,
            "title": drawing.title,
            "caption": drawing.caption,
            "svg": for_page(files[f"{drawing.name}.svg"], f"f{i}", f"{drawing.title}: {drawing.caption}"),
        }
        for i, drawing in enumerate(drawings, 1)
    ]


def fill_page(template: Path, **values: Any) -> str:
    """A page that needs nothing beside it; the template gets the style sheet as `css`."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        # All that is shown passes here: what comes from logs steers no reader's program.
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    css = _STYLE_SHEET.read_text(encoding="utf-8").rstrip()
    return environment.from_string(template.read_text(encoding="utf-8")).render(css=css, **values)
