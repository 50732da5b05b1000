"""Simulators: the τ decay with its detector, and the classics whose posteriors are known.

Import the modules themselves (``from etalumis.simulators.tau import Tau``): this package loads nothing.
"""
