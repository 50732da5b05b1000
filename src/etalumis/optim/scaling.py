"""How the learning rate grows with the minibatch."""

from __future__ import annotations

RULES = {"none": 0.0, "sub_square_root": 0.25, "square_root": 0.5, "linear": 1.0}


def scaled_lr(lr: float, rule: str | float, minibatch: int, reference: int | None) -> float:
    """lr · (minibatch / reference)^exponent.

    A gradient over k times as many traces has a k-th of the variance: steps k times as long (``linear``) follow the
    same path in plain descent; Adam's, which don't scale with the gradient, keep their noise with √k
    (``square_root``). Very large minibatches bear less: the paper scales "sub-square-root" without saying how.
    ``sub_square_root`` is the fourth root here, as 1e-4 for one rank's minibatch then gives 5.7e-4 for 1,024 of them,
    with which the paper began.

    Args:
        lr: learning rate of the reference minibatch.
        rule: one of :data:`RULES`, or the exponent itself, 0 to 1.
        minibatch: traces to an iteration, over all ranks and everything accumulated.
        reference: traces to an iteration for which ``lr`` is meant; needed by every rule but ``none``.

    Raises:
        ValueError: there is no such rule, or a number that can't be.
    """
    exponent = RULES.get(rule, -1.0) if isinstance(rule, str) else float(rule)
    if not 0.0 <= exponent <= 1.0:
        raise ValueError(f"scaling={rule!r} of the learning rate: give {', '.join(RULES)}, or an exponent of 0 to 1")
    if exponent == 0.0:
        return lr
    if reference is None or reference < 1 or minibatch < 1:
        raise ValueError(
            f"scaling={rule!r} needs reference_minibatch, the minibatch (at least 1) that lr is meant for; got "
            f"{reference}, for a minibatch of {minibatch}"
        )
    return float(lr * (minibatch / reference) ** exponent)
