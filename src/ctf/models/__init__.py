"""One Transformer, for training and for cached, packed sampling; its sizes; the head that knows its support."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
