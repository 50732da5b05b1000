"""Running models: statements, addresses, traces, controllers, and traces in columns."""

from etalumis.execution.addresses import Address, AddressBook
from etalumis.execution.batch import TraceBatch
from etalumis.execution.columns import Column, ObserveColumn
from etalumis.execution.controllers import Answer, Controller, Guided, Inflated, Prior, Replay, Script, Stop
from etalumis.execution.distribution_table import DistributionTable
from etalumis.execution.errors import DensityError, ModelError, ObservationError, Reject
from etalumis.execution.lockstep import Job, Proposer, Request, run_jobs, run_lockstep
from etalumis.execution.loop import factor, observe, sample, tag
from etalumis.execution.meetings import meetings
from etalumis.execution.model import Batched, Model, Simulator, run
from etalumis.execution.observations import Observations
from etalumis.execution.rejection import rejection
from etalumis.execution.trace import FAILED, FINISHED, REJECTED, Mark, Observed, Tagged, Trace

__all__ = [
    "FAILED",
    "FINISHED",
    "REJECTED",
    "Address",
    "AddressBook",
    "Answer",
    "Batched",
    "Column",
    "Controller",
    "DensityError",
    "DistributionTable",
    "Guided",
    "Inflated",
    "Job",
    "Mark",
    "Model",
    "ModelError",
    "ObservationError",
    "Observations",
    "ObserveColumn",
    "Observed",
    "Prior",
    "Proposer",
    "Reject",
    "Replay",
    "Request",
    "Script",
    "Simulator",
    "Stop",
    "Tagged",
    "Trace",
    "TraceBatch",
    "factor",
    "meetings",
    "observe",
    "rejection",
    "run",
    "run_jobs",
    "run_lockstep",
    "sample",
    "tag",
]
