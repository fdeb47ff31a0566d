from .carry_out import run_fit as run_fit
from .config import FitConfig as FitConfig
from .plan import Plan as Plan
from .plan import choose as choose
