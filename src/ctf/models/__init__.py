"""One Transformer for baseline, coarse and fine; its sizes; the support of stage 2."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
