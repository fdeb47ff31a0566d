from .token_set import TokenIndex as TokenIndex
from .token_set import TokenSet as TokenSet
from .tokenize import tokenize_images as tokenize_images
from .writer import TokenWriter as TokenWriter
from .writer import write_token_set as write_token_set
