"""Bayesian inference in stochastic simulators: sample, observe, tag; then ask for the posterior."""
