from .server import serve as serve
from .studio import Studio as Studio
