"""The settings of every command: Hydra config groups as YAML files, and what reads them.

A verb's settings stand in ``VERB.yaml``; comments there are what ``etalumis VERB --help`` shows.
"""
