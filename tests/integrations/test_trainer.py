"""Real Trainer runs with the callback: the same training, and the same movement as its checkpoint
folders tell.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.geometry.gramian import future_capture, prefix_capture
from loclin.integrations import TrajectoryCallback
from loclin.models.checkpoints import read_run
from loclin.run.record import Record
from loclin.studies.trajectory.movement import Run, run_of
from loclin.theory import sketched_capture
from tests.models.runs import LORA, STEPS, tiny, tiny_lora, trainer

KS = [1, 2, 3, 5, 8]


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrajectoryCallback]:
    """A run of all weights: its folder, with the start beside it, and its callback."""
    folder = tmp_path_factory.mktemp("trainer") / "full"
    callback, model = TrajectoryCallback(), tiny()
    model.save_pretrained(folder / "start")
    trainer(model, folder, callback).train()
    return folder, callback


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrajectoryCallback]:
    """The same of an adapter, with two scales."""
    folder = tmp_path_factory.mktemp("trainer") / "lora"
    callback, model = TrajectoryCallback(), tiny_lora()
    model.save_pretrained(folder / "start")
    trainer(model, folder, callback, learning_rate=1e-2).train()
    return folder, callback


def assert_same_movement(one: Run, other: Run) -> None:
    assert one.steps == other.steps
    assert one.spaces.keys() == other.spaces.keys()
    for space, movement in one.spaces.items():
        twin = other.spaces[space]
        scale = np.sqrt(np.outer(np.diag(movement.gramian), np.diag(movement.gramian)))
        assert (np.abs(movement.gramian - twin.gramian) <= 1e-12 * scale).all()
        order = [twin.names.index(name) for name in movement.names]
        assert np.allclose(movement.norms, twin.norms[:, order], rtol=1e-12)
        assert (movement.dimension, movement.still) == (twin.dimension, twin.still)


def test_checkpoints_and_callback_tell_the_same_of_all_weights(
    full: tuple[Path, TrajectoryCallback],
) -> None:
    folder, callback = full
    run = callback.run()
    assert run.steps == tuple(range(STEPS + 1))
    assert run.spaces["weights"].dimension == sum(p.numel() for p in tiny().parameters())
    assert_same_movement(run, run_of(read_run(folder, start=folder / "start")))


def test_checkpoints_and_callback_tell_the_same_of_an_adapter(
    lora: tuple[Path, TrajectoryCallback],
) -> None:
    folder, callback = lora
    assert list(callback.run().spaces) == ["factors", "weights"]
    assert_same_movement(callback.run(), run_of(read_run(folder, start=folder / "start")))


def test_the_weight_space_of_an_adapter_is_that_of_the_merged_weights(
    lora: tuple[Path, TrajectoryCallback],
) -> None:
    """ΔW by peft's own merge, dense, from every checkpoint."""
    folder, callback = lora
    merged = []
    for step in range(STEPS + 1):
        model = tiny_lora()
        model.load_adapter(
            folder / (f"checkpoint-{step}" if step else "start"), adapter_name="default"
        )
        layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
        merged.append(
            torch.cat([m.get_delta_weight("default").detach().reshape(-1) for m in layers]).double()
        )
    steps = torch.stack(merged).diff(dim=0)
    movement = callback.run().spaces["weights"]
    assert np.allclose(
        movement.gramian, (steps @ steps.T).numpy(), rtol=1e-3, atol=1e-6 * movement.gramian.max()
    )
    factors = [(m.lora_A["default"].weight.shape, m.lora_B["default"].weight.shape) for m in layers]
    assert movement.dimension == sum(
        rank * (inner + outer - rank) for (rank, inner), (outer, _) in factors
    )


def final_weights(
    folder: Path, *callbacks: TrajectoryCallback, **settings: Any
) -> dict[str, torch.Tensor]:
    model = tiny()
    trainer(model, folder, *callbacks, save_strategy="no", **settings).train()
    return model.state_dict()


def test_training_takes_the_same_steps_with_and_without_a_callback(tmp_path: Path) -> None:
    bare = final_weights(tmp_path)
    for callback in (TrajectoryCallback(), TrajectoryCallback(budget=0, size=512)):
        watched = final_weights(tmp_path, callback)
        assert all(torch.equal(bare[n], watched[n]) for n in bare)


def test_sketched_captures_lie_within_their_stated_error(
    full: tuple[Path, TrajectoryCallback], tmp_path: Path
) -> None:
    exact = full[1].run().spaces["weights"]
    size, within = 2048, []
    for seed in range(3):
        callback = TrajectoryCallback(budget=0, size=size, seed=seed)
        final_weights(tmp_path, callback)
        run = callback.run()
        assert run.sketch == size
        sketched = run.spaces["weights"]
        assert np.allclose(sketched.norms, exact.norms, rtol=1e-5)
        for of in (prefix_capture, future_capture):
            for k, c, seen in zip(KS, of(exact.gramian, KS), of(sketched.gramian, KS), strict=True):
                bias, sd = sketched_capture(c, k, size)
                within.append(abs(seen - c - bias) / sd)
    assert max(within) < 4
    assert 0.2 < float(np.mean(within)) < 2  # the stated error is no vague bound either


def test_accumulated_batches_are_one_update(tmp_path: Path) -> None:
    callback = TrajectoryCallback()
    trainer(
        tiny(),
        tmp_path,
        callback,
        max_steps=3,
        gradient_accumulation_steps=4,
        per_device_train_batch_size=1,
    ).train()
    assert callback.run().steps == (0, 1, 2, 3)
    assert np.allclose(
        callback.run().spaces["weights"].gramian[1:, 1:],
        run_of(read_run(tmp_path)).spaces["weights"].gramian,
    )


@pytest.mark.parametrize(
    ("settings", "momentum"),
    [
        ({}, 0.9),
        ({"adam_beta1": 0.8}, 0.8),
        ({"optim": "sgd"}, 0.0),
        ({"optim": "sgd", "optim_args": "momentum=0.7"}, 0.7),
        ({"optim": "adagrad"}, None),
    ],
)
def test_the_optimisers_memory_is_read_from_it(
    tmp_path: Path, settings: dict[str, Any], momentum: float | None
) -> None:
    callback = TrajectoryCallback()
    final_weights(tmp_path, callback, max_steps=3, **settings)
    assert callback.run().momentum == momentum


def test_every_nth_step_and_the_last_are_kept(tmp_path: Path) -> None:
    callback = TrajectoryCallback(every=5, pattern="*attn*")
    final_weights(tmp_path, callback)
    run = callback.run()
    assert run.steps == (0, 5, 10, 12)
    assert all("attn" in name for name in run.spaces["weights"].names)


def test_a_resumed_run_starts_a_new_record_where_it_resumes(
    full: tuple[Path, TrajectoryCallback], tmp_path: Path
) -> None:
    folder, whole = full
    callback = TrajectoryCallback()
    trainer(tiny(), tmp_path, callback, save_strategy="no").train(
        resume_from_checkpoint=str(folder / "checkpoint-8")
    )
    assert callback.run().steps == (8, 9, 10, 11, 12)
    later = whole.run().spaces["weights"].gramian[8:, 8:]
    assert np.allclose(callback.run().spaces["weights"].gramian, later, rtol=1e-4)


def test_sketched_adapters_are_measured_in_their_factors_and_say_so(tmp_path: Path) -> None:
    callback = TrajectoryCallback(budget=0, size=256)
    trainer(tiny_lora(), tmp_path, callback, save_strategy="no", max_steps=3).train()
    assert list(callback.run().spaces) == ["factors"]
    assert callback.run().notes == (
        "the factors were sketched, so that captures of the weights they make are not known",
    )


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"use_dora": True}, "adapters of kind DoRA are measured in their own parameters alone"),
        ({"lora_bias": True}, "adapters of kind LoRA with biases are measured"),
        ({"rank_pattern": {r"h\.1\..*c_fc": 2}, "use_rslora": True}, ""),
        ({"modules_to_save": ["ln_f"]}, ""),
    ],
)
# peft's, of biases, which have one axis
@pytest.mark.filterwarnings(r"ignore:Adapter 'default'. \d+ LoRA tensor.s. have invalid shape")
def test_checkpoints_and_callback_tell_the_same_of_every_adapter(
    tmp_path: Path, settings: dict[str, Any], note: str
) -> None:
    callback, model = TrajectoryCallback(), tiny_lora(**settings)
    model.save_pretrained(tmp_path / "start")
    trainer(model, tmp_path, callback, max_steps=3).train()
    run, read = callback.run(), run_of(read_run(tmp_path, start=tmp_path / "start"))
    assert list(run.spaces) == (["weights"] if note else ["factors", "weights"])
    assert (run.notes or ("",))[0].startswith(note)
    assert_same_movement(run, read)


def test_the_record_holds_what_was_kept(
    lora: tuple[Path, TrajectoryCallback], tmp_path: Path
) -> None:
    page = lora[1].record(tmp_path / "run", ks=(1, 3), shuffles=9)
    assert page == tmp_path / "run" / "report.html"
    arrays = Record(tmp_path / "run").arrays("trajectory")
    assert np.array_equal(arrays["update_gramian/weights"], lora[1].run().spaces["weights"].gramian)
    assert {
        r.context["k"]
        for r in Record(tmp_path / "run").results("trajectory")
        if r.quantity == "prefix_capture"
    } == {1, 3, 12}


def test_bad_settings_and_empty_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoclinError, match="every of at least 1 step, found 0: change it"):
        TrajectoryCallback(every=0)
    with pytest.raises(
        LoclinError, match="at least 2 recorded updates, found 0: train first, or lower every"
    ):
        TrajectoryCallback().record(tmp_path / "run")
    with pytest.raises(
        LoclinError,
        match="a sketch longer than the run's 12 updates, found 12: raise size or every",
    ):
        final_weights(tmp_path, TrajectoryCallback(budget=0, size=12))
    with pytest.raises(LoclinError, match="a pattern that matches a tensor, found 'nothing'"):
        final_weights(tmp_path, TrajectoryCallback(pattern="nothing"))
    still = TrajectoryCallback()
    final_weights(tmp_path, still, learning_rate=0.0)
    with pytest.raises(
        LoclinError, match="points that differ, found the same weights at all of step 0 to step 12"
    ):
        still.run()


def test_the_lora_run_has_two_scales() -> None:
    scales = {m.scaling["default"] for m in tiny_lora().modules() if hasattr(m, "lora_A")}
    assert scales == {LORA["lora_alpha"] / LORA["r"], LORA["alpha_pattern"]["c_fc"] / LORA["r"]}
