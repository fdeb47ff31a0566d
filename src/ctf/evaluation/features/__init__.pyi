from .extractor import FeatureExtractor as FeatureExtractor, Features as Features
from .opening import open_features as open_features
