from .errors import InputError as InputError
from .model_folder import Pipeline as Pipeline

__version__: str
