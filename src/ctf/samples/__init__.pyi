from .manifest import Manifest as Manifest, manifest_path as manifest_path
from .generate import sample_to as sample_to
from .sample_set import ImageArray as ImageArray, SampleSet as SampleSet, write_images as write_images
