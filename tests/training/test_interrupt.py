import signal

import pytest
from tiny_runs import interrupted, make_token_objective, run
from torch import nn

from ctf.files import load_tensors
from ctf.run_folder import RUN_MODEL, latest_checkpoint, step_of
from ctf.training.interrupt import interruptible
from ctf.training.token_objective import TokenObjective


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_noted_and_handlers_restored(number):
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_a_save_leaves_the_checkpoint_whole(number, tokens, tmp_path, capsys):
    class Impatient(nn.Module):
        """Interrupts again, whenever its state is collected."""

        def named_buffers(self, *args, **settings):
            signal.raise_signal(number)
            return super().named_buffers(*args, **settings)

    objective = interrupted(make_token_objective(tokens), 1, number)
    objective.extra = {"impatient": Impatient()}
    with pytest.raises(KeyboardInterrupt):
        run(objective, tmp_path)
    checkpoint = latest_checkpoint(tmp_path)
    assert load_tensors(checkpoint)[1]["step"] == "2"
    assert "Stopped after step 2; continue with --loop.resume true" in capsys.readouterr().err
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    run(make_token_objective(tokens), tmp_path, resume=True)
    assert latest_checkpoint(tmp_path).name == "step-00000006.safetensors"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [3, 6])
def test_a_signal_during_an_evaluation_ends_it_with_a_checkpoint(number, step, tokens, tmp_path):
    """Also during the last evaluation, of step 6."""
    finished = []

    class Interrupted(TokenObjective):
        def evaluate(self, module, processes):
            signal.raise_signal(number)
            finished.append(True)
            return super().evaluate(module, processes)

    objective = make_token_objective(tokens, held_out=tokens)
    objective.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt):
        run(objective, tmp_path, evaluate_every=step % 6)
    assert not finished
    assert step_of(latest_checkpoint(tmp_path)) == step
    assert not (tmp_path / RUN_MODEL).exists()
    run(make_token_objective(tokens, held_out=tokens), tmp_path, resume=True, evaluate_every=step % 6)
    assert (tmp_path / RUN_MODEL).exists()


def test_a_signal_in_the_last_step_is_not_swallowed(tokens, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(interrupted(make_token_objective(tokens), 5, signal.SIGTERM), tmp_path)
    assert step_of(latest_checkpoint(tmp_path)) == 6
