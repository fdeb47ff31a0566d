"""Tokens ⇄ coarse labels: clustering of codewords and the CoarseMap (paper, section 4.1)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
