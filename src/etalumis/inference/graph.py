"""The trace graph: which address follows which, and how often; for Graphviz."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import TraceBatch
from etalumis.inference.errors import InferenceError

START, END = "start", "end"


@dataclass(frozen=True)
class TraceGraph:
    """A Markov chain of addresses, as traces went through them.

    Attributes:
        nodes: label to the expected number of visits in one trace; :data:`START` and :data:`END` among them.
        edges: (from, to) to the probability of going there next.
    """

    nodes: dict[str, float]
    edges: dict[tuple[str, str], float]

    def to_dot(self, least: float = 0.01) -> str:
        """The graph in Graphviz's language, without edges less probable than ``least``."""
        shown = {edge: p for edge, p in self.edges.items() if p >= least}
        used = {node for edge in shown for node in edge}
        lines = ["digraph trace {", '  node [shape=box, style="rounded,filled", fillcolor="#f4f4f4", fontsize=10];']
        for node, visits in self.nodes.items():
            if node in used:
                note = "" if node in (START, END) else f"\\n{visits:.3g} per trace"
                lines.append(f"  {_quoted(node, note)};")
        for (before, after), p in shown.items():
            style = f'label="{p:.2g}", penwidth={0.5 + 2.5 * p:.2f}, fontsize=9'
            lines.append(f"  {_quoted_name(before)} -> {_quoted_name(after)} [{style}];")
        return "\n".join([*lines, "}"]) + "\n"

    def save(self, path: str | Path, least: float = 0.01) -> None:
        """Write a ``.dot`` file, or through Graphviz's program ``dot`` an ``.svg``, ``.png`` or ``.pdf``.

        Raises:
            InferenceError: Graphviz is not installed, or can't draw it.
        """
        path = Path(path)
        text = self.to_dot(least)
        if path.suffix in (".dot", ".gv"):
            path.write_text(text, encoding="utf-8")
            return
        program = shutil.which("dot")
        if program is None:
            raise InferenceError(
                f"drawing {path.name} needs the program dot: install Graphviz (apt install graphviz, "
                "brew install graphviz, conda install graphviz), or save a .dot file"
            )
        made = subprocess.run(
            [program, f"-T{path.suffix[1:]}", "-o", str(path)], input=text, text=True, capture_output=True, check=False
        )
        if made.returncode:
            raise InferenceError(f"dot could not draw {path.name}: {made.stderr.strip()}")


def trace_graph(traces: TraceBatch, weights: NDArray[np.float64] | None = None, instances: bool = False) -> TraceGraph:
    """How traces go from address to address.

    Args:
        traces: of a posterior, of the prior or of a dataset.
        weights: of each trace, (N,), summing to 1; by default all alike.
        instances: give each pass of a loop a node of its own; otherwise a loop leads back to its node.
    """
    count = len(traces)
    weights = np.full(count, 1.0 / max(count, 1)) if weights is None else weights
    labels, node = _labels(traces, instances)
    start, end = len(labels), len(labels) + 1
    # Every trace as start, its draws, end: one sequence, of which steps from an end are no steps.
    offsets = traces.offsets + 2 * np.arange(count + 1)
    sequence = np.full(traces.num_draws + 2 * count, end)
    sequence[offsets[:-1]] = start
    place = np.arange(traces.num_draws) + 2 * traces.trace_of_draw + 1
    sequence[place] = node[traces.address]
    weight = np.repeat(weights, np.diff(offsets))
    before, after, weight = sequence[:-1], sequence[1:], weight[:-1]
    steps = before != end
    size = len(labels) + 2
    pairs, which = np.unique(before[steps] * size + after[steps], return_inverse=True)
    amount = np.bincount(which, weight[steps], minlength=len(pairs))
    left = np.bincount(pairs // size, amount, minlength=size)
    names = [*labels, START, END]
    visits = np.bincount(pairs % size, amount, minlength=size)
    visits[start] = 1.0
    edges = {
        (names[pair // size], names[pair % size]): float(value / left[pair // size])
        for pair, value in zip(pairs.tolist(), amount.tolist(), strict=True)
        if value > 0.0
    }
    order = [start, *np.unique(node[traces.address]).tolist(), end]
    return TraceGraph({names[k]: float(visits[k]) for k in order if visits[k] > 0.0}, edges)


def _labels(traces: TraceBatch, instances: bool) -> tuple[list[str], NDArray[np.int64]]:
    """The labels of nodes, and the node of each address id. Named draws go by their name."""
    entries = traces.addresses.entries
    named = dict(zip(traces.address.tolist(), traces.name.tolist(), strict=True))
    nodes: dict[tuple[str, str, int], int] = {}
    labels: list[str] = []
    node = np.zeros(max(len(entries), 1), dtype=np.int64)
    taken: dict[str, int] = {}
    for number, address in enumerate(entries):
        if number not in named:
            continue
        key = (address.base, address.family, address.instance if instances else 0)
        if key not in nodes:
            name = traces.names[named[number]] or f"{address.frames[-1]} {address.family}"
            label = f"{name} #{address.instance}" if instances and address.instance > 1 else name
            again = taken[label] = taken.get(label, 0) + 1
            nodes[key] = len(labels)
            labels.append(label if again == 1 else f"{label} ({again})")
        node[number] = nodes[key]
    return labels, node


def _quoted_name(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quoted(name: str, note: str) -> str:
    quoted = _quoted_name(name)
    return f'{quoted} [label={quoted[:-1]}{note}"]'
