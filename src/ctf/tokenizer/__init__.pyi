from .config import TOKENIZER_PRESETS as TOKENIZER_PRESETS
from .config import TokenizerConfig as TokenizerConfig
from .interface import Tokenizer as Tokenizer
from .registry import load_tokenizer as load_tokenizer
from .registry import register_tokenizer as register_tokenizer
from .vq_tokenizer import VQTokenizer as VQTokenizer
from .lpips import LPIPS as LPIPS
from .losses import PatchDiscriminator as PatchDiscriminator
