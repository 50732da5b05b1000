"""Figures and tables of posteriors: what ``etalumis report`` writes."""

from etalumis.report.event import Event
from etalumis.report.report import run, write_report
from etalumis.report.samples import Sample

__all__ = ["Event", "Sample", "run", "write_report"]
