from .likelihood import bits_per_token as bits_per_token
from .manifest import Manifest as Manifest, manifest_path as manifest_path
from .statistics import FeatureStatistics as FeatureStatistics
from . import metrics as metrics
from .npz_stream import ImageArray as ImageArray, write_images as write_images
from .sample_set import SampleSet as SampleSet, sample_to as sample_to
from .extraction import Extracted as Extracted, extract as extract
from .reference import Reference as Reference, open_reference as open_reference
from .protocol import Evaluation as Evaluation, check_samples as check_samples, evaluate_samples as evaluate_samples
from .reconstruction import reconstruction_distance as reconstruction_distance
from .table import published as published, write_comparison as write_comparison
from .machine import Machine as Machine, measure_machine as measure_machine
from .sampling_throughput import SamplingSpeed as SamplingSpeed, measure_sampling as measure_sampling
from .sampling_benchmark import SamplingBenchmark as SamplingBenchmark
from .training_throughput import TrainingBenchmark as TrainingBenchmark, TrainingSpeed as TrainingSpeed
from .training_throughput import measure_training as measure_training
