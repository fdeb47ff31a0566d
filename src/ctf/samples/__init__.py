"""Sets of generated images: written by any number of processes, with a manifest, read as a stream."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
