from .config import SamplingBenchmark as SamplingBenchmark, TrainingBenchmark as TrainingBenchmark
from .machine import Machine as Machine, measure_machine as measure_machine
from .sampling import SamplingSpeed as SamplingSpeed, measure_sampling as measure_sampling
from .sampling import measure_stage as measure_stage, sampling_report as sampling_report
from .training import TrainingSpeed as TrainingSpeed, measure_training as measure_training
from .training import training_report as training_report
