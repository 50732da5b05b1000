"""Lightning callbacks."""

from etalumis.callbacks.averaging import Average
from etalumis.callbacks.balance import Balance
from etalumis.callbacks.best import BestCheckpoint
from etalumis.callbacks.early_stopping import EarlyStopping
from etalumis.callbacks.export import Export, is_trial
from etalumis.callbacks.last import LastCheckpoint
from etalumis.callbacks.position import Position
from etalumis.callbacks.progress import Progress
from etalumis.callbacks.requests import Paused
from etalumis.callbacks.result import Result

__all__ = [
    "Average",
    "Balance",
    "BestCheckpoint",
    "EarlyStopping",
    "Export",
    "LastCheckpoint",
    "Paused",
    "Position",
    "Progress",
    "Result",
    "is_trial",
]
