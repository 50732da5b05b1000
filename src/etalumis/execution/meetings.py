"""Names that a trace observes several times: which of its observations comes first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from etalumis.execution.batch import TraceBatch
from etalumis.execution.columns import ObserveColumn
from etalumis.execution.errors import ObservationError


def meetings(batch: TraceBatch, name: str) -> Iterator[tuple[ObserveColumn, NDArray[np.int64]]]:
    """Each column of a name, with the count (from 0) of the name's earlier meetings in each of its traces.

    The order is that of the statement's instances, which is that of the execution, however columns are ordered.

    Raises:
        ObservationError: different statements of one trace have the name: columns don't keep their order.
    """
    columns = [column for column in batch.observes if column.name == name]
    if len(columns) == 1:  # a column has a trace once
        yield columns[0], np.zeros(len(columns[0]), dtype=np.int64)
        return
    met = np.zeros(len(batch), dtype=np.int64)
    statement = np.full(len(batch), -1)
    sites: dict[tuple[str, str], int] = {}
    for column in sorted(columns, key=lambda c: batch.addresses[c.address].instance):
        address = batch.addresses[column.address]
        site = sites.setdefault((address.base, address.family), len(sites))
        before = statement[column.rows]
        if ((before >= 0) & (before != site)).any():
            raise ObservationError(
                f"different statements of one execution share the name {name!r}, and stored traces don't tell their "
                "order; give them distinct names in the model"
            )
        yield column, met[column.rows]
        statement[column.rows] = site
        met[column.rows] += 1
