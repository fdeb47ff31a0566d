from .draw import draw as draw
from .draw import filter_logits as filter_logits
from .orders import group_sizes as group_sizes
from .orders import order_groups as order_groups
from .prefetch import prefetch as prefetch
from .random import Random as Random
from .random import uniforms as uniforms
from .settings import Sampling as Sampling
