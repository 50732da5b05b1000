"""What ``Posterior.plot`` and ``Posterior.plot_addresses`` draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etalumis.inference.address_values import AddressValues, address_values
from etalumis.inference.by_address import met_in, most_met
from etalumis.inference.figures.canvas import canvas, finished
from etalumis.inference.figures.marginals import Labels, draw_panel, legend, marginals_figure
from etalumis.inference.figures.pairs import pairs_figure
from etalumis.inference.figures.samples import Sample
from etalumis.inference.posterior import Posterior

_MOST, _MOST_PAIRS = 12, 6
_LONGEST = 40


def plot(
    posteriors: Sequence[Posterior],
    names: Sequence[str] | None,
    truth: Mapping[str, float],
    prior: Posterior | None,
    pairs: bool,
    path: str | Path | None,
    labels: Labels,
    title: str,
) -> Any:
    """Marginals or pairs; the arguments are those of ``Posterior.plot``."""
    samples = [Sample.of(p, label) for p, label in zip(posteriors, engine_labels(posteriors), strict=True)]
    shared = [name for name in samples[0].values if all(name in s.values for s in samples)]
    missing = [name for name in names or () if name not in shared]
    if missing or not shared:
        raise ValueError(
            f"{', '.join(map(repr, missing)) or 'nothing'} is one number in every sample of every posterior; those "
            f"that are: {', '.join(map(repr, shared)) or 'none'}. Draws without a name are in plot_addresses()"
        )
    chosen = list(names) if names else shared[: _MOST_PAIRS if pairs else _MOST]
    draw = pairs_figure if pairs else marginals_figure
    before = None if prior is None else Sample.of(prior, "prior")
    return draw(samples, chosen, before, truth, labels, title, path)


def engine_labels(posteriors: Sequence[Posterior]) -> list[str]:
    """Posteriors by the names of their engines, numbered where one comes again."""
    engines = [str(posterior.info.get("engine", "posterior")) for posterior in posteriors]
    return [e if engines.count(e) == 1 else f"{e} {engines[: k + 1].count(e)}" for k, e in enumerate(engines)]


def plot_addresses(
    posterior: Posterior, prior: Posterior | None, addresses: Sequence[str] | None, path: str | Path | None
) -> Any:
    """The values at each address, of the traces that met it; the prior's grey behind."""
    found = address_values(posterior.traces)
    if addresses is None:
        addresses = most_met(posterior, found)[:_MOST]
    unknown = [address for address in addresses if address not in found]
    if unknown or not addresses:
        raise ValueError(f"no trace met {unknown or 'any address'}; by_address() lists them")
    before = {} if prior is None else address_values(prior.traces)
    columns = min(len(addresses), 4)
    figure, axes = canvas(-(-len(addresses) // columns), columns, extra=0.7)
    sample = None
    for place, address in zip(axes.flat, addresses, strict=False):
        sample = _sample(posterior, found[address], engine_labels([posterior])[0])
        behind = _sample(prior, before[address], "prior") if prior is not None and address in before else None
        draw_panel(place, "value", [sample], behind, {}, {})
        label = found[address].label
        place.set_xlabel(label if len(label) <= _LONGEST else f"…{label[-_LONGEST:]}", fontsize=8)
        share = met_in(posterior, found[address])
        place.set_title(f"met in {share:.0%}" if share < 0.9995 else "", fontsize=9)
    for place in axes.flat[len(addresses) :]:
        place.set_visible(False)
    assert sample is not None
    legend(figure, [sample], prior is not None, False, "")
    return finished(figure, path)


def _sample(posterior: Posterior, there: AddressValues, label: str) -> Sample:
    """The values at an address as weighted draws."""
    values = there.values.astype(np.int64) if there.discrete else there.values
    with np.errstate(divide="ignore"):
        log_weights = np.log(posterior.trace_weights[there.traces])
    return Sample(label, {"value": values}, log_weights)
