"""Artifacts, the small files between the stages: one frozen record per kind of file, typed throughout, with its own
check.
"""

from .calibration import CalibrationRecord, SourceRecord
from .comparison import ComparedFigure, ComparedModel, Comparison
from .compensation import Compensation, HeldOutLoss, LayerDrift, RepairReport, StreamDrift
from .evaluation import Evaluation, Perplexity, TaskResult
from .exported import Exported, ExportProof
from .generation import Agreement, AgreementItem, Draft
from .gguf import GgufProof, PrunedGguf
from .healing import Healing, HealingReport, LossChange, OwnAnswers, Recipe, ReloadedModel, TrainingData, TrainingRow
from .inspection import Inspection
from .io import RECORDS, Record, dumps, load, model_of, published, read, save, short_arrays
from .model import ModelRecord
from .plan import Candidate, Plan
from .pruned import Proof, Pruned, Unverified
from .quantised import QuantisationProof, QuantisationReport, Quantised
from .record import plain
from .removal import NOTHING, Removal, Unit
from .scores import Scores
from .speed import Analytic, FailedRow, Speed, SpeedRow, SpeedSettings, Speedup, Spread
from .sweep import Sweep, SweepRow
from .units import UNIT_KINDS, SizedUnit, Units

__all__ = [
    "NOTHING",
    "RECORDS",
    "UNIT_KINDS",
    "Agreement",
    "AgreementItem",
    "Analytic",
    "CalibrationRecord",
    "Candidate",
    "ComparedFigure",
    "ComparedModel",
    "Comparison",
    "Compensation",
    "Draft",
    "Evaluation",
    "ExportProof",
    "Exported",
    "FailedRow",
    "GgufProof",
    "Healing",
    "HealingReport",
    "HeldOutLoss",
    "Inspection",
    "LayerDrift",
    "LossChange",
    "ModelRecord",
    "OwnAnswers",
    "Perplexity",
    "Plan",
    "Proof",
    "Pruned",
    "PrunedGguf",
    "QuantisationProof",
    "QuantisationReport",
    "Quantised",
    "Recipe",
    "Record",
    "ReloadedModel",
    "Removal",
    "RepairReport",
    "Scores",
    "SizedUnit",
    "SourceRecord",
    "Speed",
    "SpeedRow",
    "SpeedSettings",
    "Speedup",
    "Spread",
    "StreamDrift",
    "Sweep",
    "SweepRow",
    "TaskResult",
    "TrainingData",
    "TrainingRow",
    "Unit",
    "Units",
    "Unverified",
    "dumps",
    "load",
    "model_of",
    "plain",
    "published",
    "read",
    "save",
    "short_arrays",
]
