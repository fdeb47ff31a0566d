from .config import TOKENIZER_PRESETS as TOKENIZER_PRESETS
from .config import TokenizerConfig as TokenizerConfig
from .vq_tokenizer import VQTokenizer as VQTokenizer
from .discriminator import PatchDiscriminator as PatchDiscriminator
from .perceptual import LPIPS as LPIPS
