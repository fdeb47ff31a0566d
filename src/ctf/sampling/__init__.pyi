from .decode import generate_tokens as generate_tokens
from .draw import draw as draw
from .draw import filter_logits as filter_logits
from .fine import refine_tokens as refine_tokens
from .packed import PackedTransformer as PackedTransformer
from .uniforms import uniforms as uniforms
