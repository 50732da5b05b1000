"""Figures and tables of posteriors: what ``etalumis report`` writes."""

from etalumis.inference.figures.samples import Sample
from etalumis.report.event import Event
from etalumis.report.report import run, write_report

__all__ = ["Event", "Sample", "run", "write_report"]
