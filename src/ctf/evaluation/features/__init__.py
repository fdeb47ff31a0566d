"""Networks that turn images into what distances between sets of images are computed from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
