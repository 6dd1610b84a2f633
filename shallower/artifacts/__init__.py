"""Artifacts, the small files between the stages: one frozen record per kind of file, with its own check."""

from .calibration import CalibrationRecord, SourceRecord
from .comparison import Comparison
from .compensation import Compensation
from .evaluation import Evaluation
from .healing import Healing
from .inspection import Inspection
from .io import RECORDS, Record, dumps, load, model_of, published, read, save, short_arrays
from .model import ModelRecord
from .plan import Plan
from .pruned import Pruned
from .removal import NOTHING, Removal, Unit
from .scores import Scores
from .speed import Speed
from .sweep import Sweep

__all__ = [
    "NOTHING",
    "RECORDS",
    "CalibrationRecord",
    "Comparison",
    "Compensation",
    "Evaluation",
    "Healing",
    "Inspection",
    "ModelRecord",
    "Plan",
    "Pruned",
    "Record",
    "Removal",
    "Scores",
    "SourceRecord",
    "Speed",
    "Sweep",
    "Unit",
    "dumps",
    "load",
    "model_of",
    "published",
    "read",
    "save",
    "short_arrays",
]
