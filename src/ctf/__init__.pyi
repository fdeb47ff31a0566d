from .errors import InputError as InputError
from .pipeline import Pipeline as Pipeline

__version__: str
