from .extractor import FeatureExtractor as FeatureExtractor
from .extractor import Features as Features
from .opening import open_features as open_features
