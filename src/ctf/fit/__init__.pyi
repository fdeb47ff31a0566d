from .decide import choose as choose
from .config import FitConfig as FitConfig
from .plan import Plan as Plan
from .run_plan import run_fit as run_fit
