from .demo import run_demo as run_demo
from .swap import swap_generated as swap_generated
from .swap import swap_images as swap_images
