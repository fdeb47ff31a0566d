from .demo import run_demo as run_demo
from .swap import swap_figure as swap_figure
