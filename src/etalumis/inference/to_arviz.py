"""A posterior as an ArviZ object, for its plots and tables; ArviZ 0.x and 1.x."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from etalumis.inference.errors import InferenceError

if TYPE_CHECKING:
    from etalumis.inference.posterior import Posterior


def to_arviz(posterior: Posterior, num_draws: int | None = None) -> Any:
    """The named numbers and arrays that every sample has, with dimensions (chain, draw, …).

    Markov chains go as they are, cut to the shortest. ArviZ knows no weights: weighted samples are resampled to
    equal ones.

    Args:
        posterior: what to convert.
        num_draws: how many to resample; by default the effective sample size rounded up. Not for Markov chains.

    Returns:
        ``arviz.InferenceData`` (0.x) or ``xarray.DataTree`` (1.x).

    Raises:
        InferenceError: ArviZ is not installed, or no name is there in every sample, or every weight is zero.
    """
    try:
        import arviz
    except ImportError as error:
        raise InferenceError("to_arviz needs ArviZ; install it with: pip install 'etalumis[report]'") from error
    source = posterior
    if not posterior.markov:
        source = posterior.resample(math.ceil(posterior.ess) if num_draws is None else num_draws)
    groups: dict[str, Any] = {}
    for name in source.names:
        try:
            values = source.chain_values(name)
        except ValueError:  # not there in every sample
            continue
        if values.dtype.kind in "biuf":
            groups[name] = values
    if not groups:
        raise InferenceError(f"no named number is there in every sample; the names are {sorted(source.names)}")
    density = source.traces.log_likelihood + source.traces.log_prior
    data = {"posterior": groups, "sample_stats": {"lp": source.by_chain(density[source.rows])}}
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(data)
    return arviz.from_dict(**data)
