from . import llamagen as llamagen
from . import var as var
from .codes import export_codes as export_codes
from .codes import import_codes as import_codes
from .tokenizers import open_codebook as open_codebook
from .tokenizers import open_tokenizer as open_tokenizer
