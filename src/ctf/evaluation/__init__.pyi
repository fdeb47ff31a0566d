from .likelihood import bits_by_steps as bits_by_steps, bits_per_token as bits_per_token
from .statistics import FeatureStatistics as FeatureStatistics
from . import metrics as metrics
from .extraction import Extracted as Extracted, extract as extract
from .reference import Reference as Reference, open_reference as open_reference
from .protocol import Evaluation as Evaluation, check_samples as check_samples, evaluate_samples as evaluate_samples
from .neighbours import compare_neighbours as compare_neighbours
from .reconstruction import reconstruction_distance as reconstruction_distance
from .table import published as published, write_comparison as write_comparison
