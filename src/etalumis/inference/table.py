"""A posterior as a small table of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etalumis.inference.posterior import Posterior

_MOST_ROWS = 12


def describe(posterior: Posterior) -> str:
    """One line on the whole, then a line per named number."""
    info = posterior.info
    head = [f"{len(posterior)} samples"]
    if posterior.markov:
        head.append(f"{posterior.num_chains} chains")
    if len(posterior) and posterior.log_weights.max() > -float("inf"):
        head.append(f"ESS {posterior.ess:.4g}")
        if not posterior.markov and posterior.log_weights.min() < posterior.log_weights.max():
            head.append(f"log evidence {posterior.log_evidence:.4g} ± {posterior.log_evidence_error:.2g}")
    else:
        head.append("every weight is zero")
    lines = [f"Posterior of {info.get('model', 'a model')} by {info.get('engine', 'hand')}: {', '.join(head)}"]
    if posterior.log_weights.max(initial=-float("inf")) > -float("inf"):
        lines += _rows(posterior)
    lines += [f"warning: {message}" for message in info.get("warnings", ())]
    return "\n".join(lines)


def _rows(posterior: Posterior) -> list[str]:
    names = posterior.numbers
    rows = posterior.summary(names[:_MOST_ROWS])
    if not rows:
        return []
    columns = list(rows[0])
    cells = [columns] + [[str(row["name"]), *(f"{row[c]:.4g}" for c in columns[1:])] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    hidden = [name for name in posterior.names if name not in names[:_MOST_ROWS]]
    if hidden:
        shown = ", ".join(hidden[:_MOST_ROWS])
        lines.append(f"  and: {shown}{', …' if len(hidden) > _MOST_ROWS else ''}")
    return lines
