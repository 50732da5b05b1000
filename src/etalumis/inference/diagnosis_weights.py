"""What a diagnosis says of importance weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from etalumis.inference import diagnostics
from etalumis.inference.diagnosis_chains import ESS_BAD
from etalumis.inference.origin import Origin

if TYPE_CHECKING:
    from etalumis.inference.posterior import Posterior

LARGEST_WEIGHT = 0.2  # of one trace


def weight_numbers(posterior: Posterior) -> dict[str, Any]:
    """Of the whole."""
    info, count = posterior.info, len(posterior) + posterior.num_dropped
    resampled = Origin.of(info) is not None
    return {
        "samples": count,
        "weighed": posterior.num_weighed if resampled else None,
        "ess": posterior.ess,
        "ess_share": posterior.ess / count,
        "ess_smoothed": None if resampled else diagnostics.ess_weights(posterior.smoothed().log_weights),
        "log_evidence": posterior.log_evidence,
        "log_evidence_error": posterior.log_evidence_error,
        "pareto_k": posterior.pareto_k,
        "pareto_k_limit": diagnostics.pareto_k_threshold(posterior.num_weighed),
        "largest_weight": float(posterior.trace_weights.max()),
        "zero_weights": int((posterior.log_weights == -math.inf).sum()) + posterior.num_dropped,
        "unknown_draws": info.get("unknown_draws"),
        "executions": info.get("executions"),
        "seconds": info.get("seconds"),
    }


def weight_problems(posterior: Posterior, numbers: dict[str, Any]) -> Iterator[str]:
    """Why averages over these weights should not be used."""
    advice = diagnostics.tail_advice(numbers["pareto_k"], numbers["ess"], posterior.num_weighed)
    if advice:
        yield advice
    if numbers["ess"] < ESS_BAD:
        told = f"the effective sample size is {numbers['ess']:.3g} (limit {ESS_BAD:.0f}) of {numbers['samples']}"
        if numbers["weighed"]:
            yield f"{told} samples, resampled from {numbers['weighed']} traces: resample more, or weigh more traces"
        else:
            needed = numbers["samples"] * ESS_BAD / numbers["ess"]
            yield (f"{told} traces. About {needed:,.0f} traces are needed, if the weights behave; or a better proposal")


def weight_notes(posterior: Posterior, numbers: dict[str, Any]) -> Iterator[str]:
    """What to know of them."""
    if numbers["weighed"]:
        yield f"resampled: k̂ and the error of the evidence are those of the {numbers['weighed']} weighted traces before"
    if numbers["largest_weight"] > LARGEST_WEIGHT:
        yield f"one trace carries {numbers['largest_weight']:.0%} of the weight; .smoothed() spreads it"
    if math.isnan(numbers["pareto_k"]):
        yield f"{posterior.num_weighed} traces are too few to judge the tail of the weights (k̂)"
    share = numbers["zero_weights"] / numbers["samples"]
    if share > 0.5:
        yield f"{share:.0%} of the traces have weight zero: they can't have produced the observation"
