import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import make_token_objective, run
from torch import nn

from ctf.files import load_tensors
from ctf.run_folder import latest_checkpoint
from ctf.training.interrupt import interruptible
from ctf.training.token_objective import TokenObjective

ENDLESS = """
import sys
from tiny_runs import make_token_objective, make_token_set, run
run(make_token_objective(make_token_set(sys.argv[1] + "/tokens")), sys.argv[1] + "/run", steps=1_000_000)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_a_question_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_checkpoint_is_written_does_not_harm_it(number, tokens, tmp_path, capsys):
    class Impatient(nn.Module):
        """Interrupts again, whenever its state is collected."""

        def named_buffers(self, *args, **settings):
            signal.raise_signal(number)
            return super().named_buffers(*args, **settings)

    class Interrupted(TokenObjective):
        def after_step(self, ema, step):
            if step == 1:
                signal.raise_signal(number)
            return {}

    objective = make_token_objective(tokens)
    objective.__class__ = Interrupted
    objective.extra = {"impatient": Impatient()}
    with pytest.raises(KeyboardInterrupt):
        run(objective, tmp_path)
    checkpoint = latest_checkpoint(tmp_path)
    assert load_tensors(checkpoint)[1]["step"] == "2"
    assert "Stopped after step 2; continue with --loop.resume true" in capsys.readouterr().err
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    run(make_token_objective(tokens), tmp_path, resume=True)
    assert latest_checkpoint(tmp_path).name == "step-00000006.safetensors"


def test_ctrl_c_ends_a_process_with_a_checkpoint(tmp_path):
    log = tmp_path / "run" / "log.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)], cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=300)
    assert "KeyboardInterrupt" in messages
    assert process.returncode == -signal.SIGINT
    assert load_tensors(latest_checkpoint(tmp_path / "run"))[1]["ctf"] == "checkpoint"
