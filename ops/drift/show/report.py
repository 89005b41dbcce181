"""`amn drift report`: one self-contained page for whoever was woken up."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from pathlib import Path
from string import Template

from rich.table import Table
from rich.text import Text

from ops.drift.memory import Memory
from ops.drift.settings import JudgeSettings
from ops.drift.show import views
from ops.drift.show.plots import means_plot, scores_plot
from ops.drift.state import Evaluation
from ops.errors import FileRefused
from producer.keys import Keys
from workers.shadow.exemplars import RANDOM, WORST, Exemplar

_PAGE = Path(__file__).with_name("page.html")
#: Rows of each slice and kind.
_EXEMPLARS = 10
_AUDIT_ROWS = 20


def page(
    keys: Keys,
    memory: Memory,
    found: Evaluation,
    exemplars: Sequence[Exemplar] = (),
    model: str | None = None,
) -> str:
    """The page as HTML text; pictures are inline, nothing is loaded from anywhere.

    Args:
        exemplars: Those of the last 24 h, the worst first.
        model: The model that is drawn; the one that most samples are of, when None.

    Raises:
        FileRefused: Nothing was sampled of this model.
    """
    model = model or found.traffic.main_model()
    if model is not None and model not in found.traffic.series:
        known = ", ".join(found.traffic.series) or "none"
        raise FileRefused(
            f"nothing was sampled of model {model!r} in the last eight days; of these it was: {known}"
        )
    sections = _sections(found, model, [one for one in exemplars if one.model == model])
    sections += _section("Baselines", _table(views.audit_table(memory.audit()[:_AUDIT_ROWS])))
    line = views.one_line(found)
    # The rules that fire are shown, the others folded away.
    order = {"firing": 0, "insufficient": 1, "ok": 2}
    ordered = sorted(found.findings, key=lambda f: (order[f.state], f.severity != "page", f.rule, f.lane))
    firing = [one for one in ordered if one.state == "firing"]
    resting = ordered[len(firing) :]
    return Template(_PAGE.read_text("utf-8")).substitute(
        queue=html.escape(keys.queue),
        style=views.STYLES.get(line.split()[0].rstrip(":"), ""),
        verdict=html.escape(line),
        at=time.strftime("%Y-%m-%d %H:%M", time.gmtime(found.now_ms / 1000)),
        model=html.escape(model or "none"),
        firing=_table(views.rules_table(firing)) or "<p>No rule fires.</p>",
        count=len(resting),
        resting=_table(views.rules_table(resting)),
        sections="\n".join(sections),
    )


def _sections(found: Evaluation, model: str | None, exemplars: Sequence[Exemplar]) -> list[str]:
    if model is None:
        return [
            "<p>Nothing was sampled in the last eight days, or only in the last minutes, which are not "
            "judged yet: there is nothing to draw.</p>"
        ]
    scores, note = scores_plot(found, model)
    ordered = [
        one
        for slice_, kind in ((s, k) for s in ("ood", "id") for k in (WORST, RANDOM))
        for one in [e for e in exemplars if (e.slice, e.kind) == (slice_, kind)][:_EXEMPLARS]
    ]
    return [
        *_section(
            "Mean cosines, the OOD delta, and since when: 48 h", means_plot(found, model, JudgeSettings())
        ),
        *_section("Where", _table(views.series_table(found, model))),
        *_section("Scores of 24 h", scores, f'<p class="soft">{note}</p>'),
        *_section("Against what stands in for the truth", _table(views.stand_ins_table(found, model))),
        *_section("Requests, the worst and some at random", _table(views.exemplars_table(ordered))),
    ]


def _section(title: str, body: str, *more: str) -> list[str]:
    """A heading over what is wide; nothing when the body is empty."""
    return [f"<h2>{title}</h2>", f'<div class="wide">{body}</div>', *more] if body else []


def _table(table: Table) -> str:
    """HTML of a table that a terminal shows too; a cell's style becomes its class. Empty without rows."""
    kinds = [column.justify.replace("left", "") for column in table.columns]
    head = "".join(
        _cell("th", column.header, kind) for column, kind in zip(table.columns, kinds, strict=True)
    )
    rows = [
        "".join(_cell("td", cell, kind) for cell, kind in zip(cells, kinds, strict=True))
        for cells in zip(*(column.cells for column in table.columns), strict=True)
    ]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>" if rows else ""


def _cell(tag: str, cell: object, kind: str) -> str:
    kind = kind or (str(cell.style) if isinstance(cell, Text) else "")
    name = f' class="{kind}"' if kind else ""
    return f"<{tag}{name}>{html.escape(str(cell))}</{tag}>"
