from .likelihood import bits_per_token as bits_per_token
from .sample_set import sample_to as sample_to
