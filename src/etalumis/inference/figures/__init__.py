"""Figures of posteriors and of their diagnostics, in one style.

Matplotlib comes with the extra ``report`` and is imported when a figure is drawn, never before.
"""
