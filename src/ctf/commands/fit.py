"""`ctf fit`."""

from __future__ import annotations

from ctf.fit.config import FitConfig


def fit(config: FitConfig) -> None:
    """From a folder of images to a model: tokenizer, clusters, both stages, samples and a report.

    Example:
        ctf fit --images pictures --time 15m --out runs/mine
    """
    from time import monotonic

    started = monotonic()  # what is imported from here on takes time too
    from pathlib import Path

    from ctf.device import usable_device
    from ctf.fit.decide import choose, parse_time
    from ctf.fit.plan import PLAN, Plan
    from ctf.fit.run_plan import check_folder, run_fit

    parse_time(config.time)
    where, path = usable_device(config.device), Path(config.out) / PLAN
    if path.exists():
        plan = Plan.load(path)
        plan.check_asked(path, config)
        print(f"Going on with the plan in {path}.")
    else:
        if not config.dry_run:
            check_folder(Path(config.out))
        plan = choose(config, where, started)
    print(plan.table())
    if not config.dry_run:
        run_fit(plan, config.out, config.device)
