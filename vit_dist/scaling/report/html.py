"""One style sheet for all pages, and how their templates are filled: what was read steers no reader's program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vit_dist.core.terminal import clean

_STYLE_SHEET = Path(__file__).parent / "page.css"


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
