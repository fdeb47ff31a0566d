"""Images ⇄ tokens: the VQ-VAE, its quantizer and its losses (paper, section 2.1)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
