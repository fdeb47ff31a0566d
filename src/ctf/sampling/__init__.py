"""What every stage draws with: settings, random numbers, filters, guidance; what sampling takes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
