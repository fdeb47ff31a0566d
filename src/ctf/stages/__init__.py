"""Stages: what turns a class label, and the labels of the stage before, into the next finer labels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
