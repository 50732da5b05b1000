"""The engine's side of scripted runs: a simulator's columns, read and checked.

Columns come from outside, so everything in them is checked: lengths, ids, shapes; and since nobody wants to score
every draw twice, the log densities of a few draws of each answer are computed again here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import BY_CODE, Distribution
from etalumis.execution import AddressBook, DensityError, DistributionTable
from etalumis.execution.addresses import OBSERVE, SAMPLE, TAG
from etalumis.execution.ragged import offsets_of
from etalumis.ppx import scripted as s
from etalumis.ppx.errors import ProtocolError
from etalumis.ppx.ragged import column, owners, shapes_of, value_of

_CHECKED = 8  # draws of each answer whose density is computed again; 2 where it is one execution only
_TOLERANCE = 1e-6
_MOST_BASES, _MOST_INSTANCES = 1 << 22, 1 << 30
_KINDS = {kind: number for number, kind in enumerate((SAMPLE, OBSERVE, TAG))}


@contextmanager
def orderly() -> Iterator[None]:
    """Whatever is wrong with columns from outside is a ProtocolError."""
    try:
        yield
    except ProtocolError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ProtocolError(f"columns of a scripted run that make no sense: {error}") from error


class Interpreter:
    """Reads the columns of one connection, whose numbering of addresses and names it keeps.

    Args:
        addresses: the model's address book; new addresses are interned in it.
    """

    def __init__(self, addresses: AddressBook) -> None:
        self.addresses = addresses
        self.bases, self.names = s.Numbering(), s.Numbering()
        self._keys: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._ids: NDArray[np.int32] = np.zeros(0, dtype=np.int32)

    def read(self, row: tuple[Any, ...], first: int, count: int) -> Table:
        """Check an answer to a request for ``count`` executions from index ``first``.

        Raises:
            ProtocolError: the columns don't fit together.
        """
        with orderly():
            columns = s.Columns(*row)
            self.bases.hear(columns.new_addresses or ())
            self.names.hear(columns.new_names or ())
            return Table(self, columns, first, count)

    def identify(self, base: NDArray[Any], code: NDArray[Any], instance: NDArray[Any], kind: str) -> NDArray[np.int32]:
        """Ids of full addresses by the connection's numbers, (n,) each."""
        if not len(base):
            return np.zeros(0, dtype=np.int32)
        if base.max() >= len(self.bases.texts) or len(self.bases.texts) > _MOST_BASES:
            raise ProtocolError("an address was never introduced")
        if instance.max() >= _MOST_INSTANCES or instance.min() < 1:
            raise ProtocolError("an instance out of range")
        keys = (base.astype(np.int64) * 3 + _KINDS[kind]) * 256 + code.astype(np.int64)
        keys = keys * _MOST_INSTANCES + instance.astype(np.int64)
        if len(self._keys):
            places = np.searchsorted(self._keys, keys)
            places[places == len(self._keys)] = 0
            if (self._keys[places] == keys).all():
                return np.asarray(self._ids[places])
        distinct, where = np.unique(keys, return_index=True)
        for place in np.sort(where).tolist():  # in order of appearance, so that equal runs intern alike
            family = BY_CODE[int(code[place])].family if kind != TAG else "Tag"
            self.addresses.intern(self.bases.texts[int(base[place])], family, int(instance[place]), kind)
        ids = [
            self.addresses.intern(
                self.bases.texts[int(base[p])],
                BY_CODE[int(code[p])].family if kind != TAG else "Tag",
                int(instance[p]),
                kind,
            )
            for p in where.tolist()
        ]
        everything = np.concatenate([self._keys, distinct])
        self._keys, order = np.unique(everything, return_index=True)
        self._ids = np.concatenate([self._ids, np.array(ids, dtype=np.int32)])[order]
        return np.asarray(self._ids[np.searchsorted(self._keys, keys)])


class Table:
    """One answer, checked."""

    def __init__(self, reader: Interpreter, c: s.Columns, first: int, count: int) -> None:
        self.reader = reader
        self.columns = c
        self.ended = column(c.ended, np.uint8)
        self.traces = len(self.ended)
        failed = bool(self.traces) and self.ended[-1] == s.FAILED
        if not (self.traces == count or (failed and self.traces <= count)) or (self.ended > s.FAILED).any():
            raise ProtocolError(f"{count} executions were asked for, {self.traces} were answered")
        self.index = np.arange(first, first + self.traces, dtype=np.int64)
        self.lengths, self.owner = owners(c.lengths, self.traces)
        draws = len(self.owner)
        self._read_distributions(c)
        self.distribution = column(c.distribution, np.int64, draws)
        self._check_rows(self.distribution)
        self.sizes = np.ones(draws, dtype=np.int64) if c.sizes is None else column(c.sizes, np.int64, draws)
        self.value = column(c.values, np.float64, int(self.sizes.sum()))
        self.value_offsets = offsets_of(self.sizes)
        if not np.array_equal(self.sizes, self.volume[self.distribution]):
            raise ProtocolError("a value does not have the size of its distribution")
        self.name = self.names_of(c.name, draws)
        self.control = column(c.control, np.bool_, draws)
        self.conditioned = column(c.conditioned, np.bool_, draws)
        self.log_prob = column(c.log_prob, np.float64, draws)
        self.log_q = self.log_prob if c.log_q is None or not len(c.log_q) else column(c.log_q, np.float64, draws)
        self.log_likelihood = column(c.log_likelihood, np.float64, self.traces)
        base, instance = column(c.address, np.int64, draws), column(c.instance, np.int64, draws)
        self.address = reader.identify(base, self.table.code[self.distribution], instance, SAMPLE)
        self._read_observes(s.Observed(*(c.observes or ())))
        self._check_densities()

    # --- reading ----------------------------------------------------------------------------------------------

    def _read_distributions(self, c: s.Columns) -> None:
        code = column(c.codes, np.uint8)
        rows = len(code)
        sizes = column(c.parameter_sizes, np.int64, rows)
        parameters = column(c.parameters, np.float64, int(sizes.sum()))
        if not set(np.unique(code).tolist()) <= set(BY_CODE):
            raise ProtocolError(f"unknown family among the codes {np.unique(code).tolist()}")
        shapes = shapes_of(c.ranks, c.shapes, rows)
        self.volume = np.array([math.prod(shape) for shape in shapes] if any(shapes) else [1] * rows, dtype=np.int64)
        for family in map(BY_CODE.__getitem__, np.unique(code).tolist()):
            here = code == family.code
            if not family.parameter_axes and (sizes[here] != len(family.parameter_names) * self.volume[here]).any():
                raise ProtocolError(f"a {family.family} has the wrong number of parameters")
        self.table = DistributionTable(code, offsets_of(sizes), parameters, shapes)

    def _read_observes(self, o: s.Observed) -> None:
        _, self.observe_owner = owners(o.lengths, self.traces)
        count = len(self.observe_owner)
        self.observe_distribution = column(o.distribution, np.int64, count)
        self._check_rows(self.observe_distribution)
        sizes = np.ones(count, dtype=np.int64) if o.sizes is None else column(o.sizes, np.int64, count)
        volume = self.volume[self.observe_distribution]
        if ((sizes != volume) & (sizes != 0)).any():
            raise ProtocolError("an observed value does not have the size of its distribution")
        self.observe_offsets = offsets_of(sizes)
        self.observe_value = column(o.values, np.float64, int(sizes.sum()))
        self.observed = column(o.observed, np.bool_, count)
        if (self.observed & (sizes == 0) & (volume != 0)).any():
            raise ProtocolError("an observed value is missing")
        self.observe_log_prob = column(o.log_prob, np.float64, count)
        self.observe_name = self.names_of(o.name, count)
        base, instance = column(o.address, np.int64, count), column(o.instance, np.int64, count)
        self.observe_address = self.reader.identify(base, self.table.code[self.observe_distribution], instance, OBSERVE)

    def names_of(self, numbers: Any, count: int) -> NDArray[np.int64]:
        """A column of names' numbers."""
        names = column(numbers, np.int64, count)
        if count and names.max() >= len(self.reader.names.texts):
            raise ProtocolError("a name was never introduced")
        return names

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        if len(rows) and rows.max() >= len(self.table):
            raise ProtocolError("a distribution is missing from the table")

    def _check_densities(self) -> None:
        """No log density may be NaN, and a few are computed again."""
        bad = np.flatnonzero(np.isnan(self.log_prob) | np.isnan(self.log_q))
        if len(bad):
            raise self._not_a_number(self.address[bad[0]], self.draw(int(bad[0])))
        bad = np.flatnonzero(np.isnan(self.observe_log_prob))
        if len(bad):
            raise self._not_a_number(self.observe_address[bad[0]], self.observation(int(bad[0])))
        if np.isnan(self.log_likelihood).any():
            raise DensityError("the simulator's log likelihood is not a number")
        many = _CHECKED if self.traces > 1 else 2
        for d in _few(len(self.log_prob), many, int(self.index[0]) if self.traces else 0):
            if not self.conditioned[d]:
                self._check(self.address[d], *self.draw(d), self.log_prob[d])
        for o in _few(len(self.observe_log_prob), many, int(self.index[0]) if self.traces else 0):
            if self.observed[o]:
                self._check(self.observe_address[o], *self.observation(o), self.observe_log_prob[o])

    def _check(self, address: int, distribution: Distribution, value: Any, log_prob: float) -> None:
        expected = distribution.log_prob(value)
        if expected != log_prob and not abs(expected - log_prob) <= _TOLERANCE * (1.0 + abs(expected)):
            raise ProtocolError(
                f"the simulator says that the log density of {value!r} under {distribution!r} is {log_prob:.9g}, but "
                f"it is {expected:.9g} (at {self.reader.addresses[address]})"
            )

    def _not_a_number(self, address: int, statement: tuple[Distribution, Any]) -> DensityError:
        return DensityError(
            f"log density is not a number at address {self.reader.addresses[address]}: {statement[0]!r} at value "
            f"{statement[1]!r}; look for a NaN among the parameters or the data there"
        )

    def draw(self, d: int) -> tuple[Distribution, Any]:
        """Distribution and value of a draw."""
        distribution = self.table.distribution(int(self.distribution[d]))
        return distribution, value_of(self.value[self.value_offsets[d] : self.value_offsets[d + 1]], distribution)

    def observation(self, o: int) -> tuple[Distribution, Any]:
        """Distribution and value (None where nobody gave one) of an observe."""
        distribution = self.table.distribution(int(self.observe_distribution[o]))
        flat = self.observe_value[self.observe_offsets[o] : self.observe_offsets[o + 1]]
        return distribution, value_of(flat, distribution) if len(flat) else None

    @property
    def error(self) -> str:
        """Why the last execution failed."""
        return self.columns.error or ("a budget was exhausted" if s.EXHAUSTED in self.ended else "")


def _few(count: int, many: int, seed: int) -> list[int]:
    """Positions spread over a column, others for each answer."""
    if count <= many:
        return list(range(count))
    step = count / many
    return [int(step * (k + (0.618 * (seed + 1) + 0.381 * k) % 1.0)) for k in range(many)]
