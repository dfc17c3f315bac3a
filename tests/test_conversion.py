"""`vjepa-mpc convert`: the same outputs before and after, bounded memory, and every refusal by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meta_layout import SIZE, metas_names, save_encoder_file, small_encoder
from typer.testing import CliRunner

from vjepa_mpc.cli.main import build_app
from vjepa_mpc.conversion import ConversionSettings, convert
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.encoder import encode_clips, load_encoder
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel

GOLDEN = Path(__file__).parent / "golden"
SMALL = ConversionSettings(heads=2, size=SIZE)
TINY = ConversionSettings(heads=2, predictor_heads=4, size=64, crop_aspect=1.0)


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(build_app(), ["convert", *map(str, arguments)])


def clips() -> torch.Tensor:
    return torch.randn(2, 4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def test_an_encoder_gives_the_same_numbers_after_conversion(tmp_path: Path) -> None:
    online, averaged = small_encoder(0), small_encoder(1)
    path = save_encoder_file(tmp_path / "vit.pt", online, averaged)
    for key, model in (("encoder", online), ("target_encoder", averaged)):
        convert(path, tmp_path / key, ConversionSettings(key=key, heads=2, size=SIZE))  # type: ignore[arg-type]
        found = load_encoder(tmp_path / key)
        assert found.config.mlp_ratio == 2.5 and found.config.crop_size == SIZE
        with torch.no_grad():
            wanted = model(clips(), skip_predictor=True).last_hidden_state
            assert torch.equal(found(clips(), skip_predictor=True).last_hidden_state, wanted)
            torch.testing.assert_close(encode_clips(found, clips()), wanted, atol=2e-5, rtol=1e-5)


def test_the_report_says_what_became_of_everything(tmp_path: Path) -> None:
    positions = {"module.backbone.pos_embed": torch.zeros(1, 2 * (SIZE // 8) ** 2, 24)}
    path = save_encoder_file(tmp_path / "vit.pt", small_encoder(0), small_encoder(1))
    content = torch.load(path, weights_only=True)
    content["target_encoder"] |= positions
    torch.save(content, path)
    result = run(path, tmp_path / "out", "--heads", "2", "--size", str(SIZE), "--report", "--beside", path)
    assert result.exit_code == 0, result.output
    count = len(metas_names(small_encoder(0)))
    assert f"mapped: {count} tensors of target_encoder\n" in result.output
    dropped = "dropped: encoder, predictor, opt, scaler, epoch, loss, batch_size, world_size, lr, pos_embed\n"
    assert dropped in result.output
    assert "unmatched: nothing\n" in result.output
    assert f"target_encoder and encoder in this file differ in {count} of {count} tensors" in result.output
    assert f"target_encoder and {path} are equal." in result.output
    settings = ConversionSettings("encoder", 2, size=SIZE)
    beside = convert(path, tmp_path / "other", settings, beside=str(tmp_path / "out"))
    assert "differ in" in beside.compared[1]


def test_a_world_model_from_the_action_conditioned_file_has_the_references_numbers(tmp_path: Path) -> None:
    z = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "ac_tiny.npz").items()}
    result = run(
        GOLDEN / "ac_tiny.pt", tmp_path / "ac", "--heads", 2, "--predictor-heads", 4, "--size", 64, "--crop-aspect", 1,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["kind"] == "world model"
    assert report["compared"] == ["target_encoder and encoder in this file are equal."]
    model = WorldModel.from_pretrained(tmp_path / "ac")
    with torch.no_grad():
        latents = model.encode(z["frames"])
        torch.testing.assert_close(latents, z["latents"], rtol=0, atol=1e-5)
        context = Context(latents[None, :1], z["states"][:1, :1], z["actions"][:1, :0])
        future = model.rollout(context, z["landscape_actions"][None])
        energy = (future.latents[0, :, -1] - latents[-1]).abs().mean(dim=(-1, -2))
    torch.testing.assert_close(energy, z["landscape_energy"], rtol=0, atol=1e-4)
    robot = model.config.robot
    assert robot.state_model == "pose" and robot.action_high == (0.075, 0.075, 0.075, 0.0, 0.0, 0.0, 0.75)
    assert robot.action_units == ("m", "m", "m", "rad", "rad", "rad", "1") and model.config.history == 1
    assert model.config.latent.standardise is False and model.longest_horizon == 7


def test_the_published_preparation_is_the_default(tmp_path: Path) -> None:
    convert(GOLDEN / "ac_tiny.pt", tmp_path / "ac", ConversionSettings(heads=2, predictor_heads=4, size=64))
    preparation = WorldModel.from_pretrained(tmp_path / "ac").config.preparation
    assert preparation.crop_aspect == 1.35 and preparation.crop(180, 320) == (0, 38, 180, 243)


def test_half_precision_and_encoder_only(tmp_path: Path) -> None:
    settings = ConversionSettings(heads=2, predictor_heads=4, size=64, dtype="float16")
    whole = convert(GOLDEN / "ac_tiny.pt", tmp_path / "float32", TINY)
    half = convert(GOLDEN / "ac_tiny.pt", tmp_path / "float16", settings)
    assert 0.45 < half.bytes / whole.bytes < 0.55
    WorldModel.from_pretrained(tmp_path / "float16")
    alone = convert(GOLDEN / "ac_tiny.pt", tmp_path / "alone", ConversionSettings(heads=2, size=64, encoder_only=True))
    assert alone.kind == "encoder" and "predictor" in alone.dropped
    load_encoder(tmp_path / "alone")


def changed(path: Path, **tensors: torch.Tensor | None) -> Path:
    """A small encoder's file with tensors (dots as __) replaced, or with None dropped."""
    save_encoder_file(path, small_encoder(0))
    content = torch.load(path, weights_only=True)
    for name, value in tensors.items():
        full = "module.backbone." + name.replace("__", ".")
        if value is None:
            del content["encoder"][full]
        else:
            content["encoder"][full] = value
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm__bias": None}, r"missing \['layernorm.bias'\], left over none"),
        ({"extra__weight": torch.zeros(2)}, r"left over \['extra.weight'\]"),
        ({"norm__bias": torch.zeros(5)}, r"\(5,\) and should be \(24,\)"),
        ({"norm__bias": torch.full((24,), torch.nan)}, "layernorm.bias holds NaN"),
        ({"blocks__0__attn__qkv__weight": torch.zeros(1).expand(72, 10**9)}, "larger than the file"),
        ({"pos_embed": torch.zeros(1, 1570, 24)}, "V-JEPA 1"),
        ({"patch_embed__proj__weight": None}, "has no patch_embed.proj.weight"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        convert(changed(tmp_path / "x.pt", **change), tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_other_bad_input_is_one_sentence_each(tmp_path: Path) -> None:
    path = save_encoder_file(tmp_path / "vit.pt", small_encoder(0))
    whole = path.read_bytes()
    (tmp_path / "torn.pt").write_bytes(whole[: len(whole) // 2])
    full = tmp_path / "full"
    full.mkdir()
    (full / "kept.txt").write_text("mine")
    cases: list[tuple[Path, Path, ConversionSettings, str]] = [
        (tmp_path / "torn.pt", tmp_path / "a", SMALL, "not a whole PyTorch checkpoint"),
        (path, full, SMALL, "not an empty folder"),
        (path, tmp_path / "a", ConversionSettings(key="target_encoder", heads=2), "no 'target_encoder'; it has"),
        (path, tmp_path / "a", ConversionSettings(), "--heads: 1024 \\(16\\)"),
        (path, tmp_path / "a", ConversionSettings(heads=5, size=SIZE), "5 heads do not divide"),
        (path, tmp_path / "a", ConversionSettings(heads=2, size=33), "33 pixels do not divide"),
        (path, tmp_path / "a", ConversionSettings(heads=2, dtype="int8"), "not int8"),
        (GOLDEN / "ac_wide.pt", tmp_path / "a", TINY, "has no encoder, only predictor"),
        (GOLDEN / "ac_tiny.pt", tmp_path / "a", ConversionSettings(heads=2, size=64), "--predictor-heads"),
    ]
    for source, out, settings, message in cases:
        with pytest.raises(InputError, match=message):
            convert(source, out, settings)
    assert (full / "kept.txt").read_text() == "mine"
    result = run(path, tmp_path / "a", "--key", "encodr")
    assert result.exit_code != 0 and "did you mean 'encoder'" in str(result.exception)


def peak_bytes(*, reset: bool = False) -> int:
    """The most memory this process has held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux tells the peak of a moment")
def test_conversion_needs_less_memory_than_what_it_keeps(tmp_path: Path) -> None:
    """Of a file of 110 MB, two encoders and optimiser state, 38 MB are kept, tensor by tensor."""
    model = small_encoder(0, hidden_size=512, num_hidden_layers=3, num_attention_heads=8, mlp_ratio=4.0)
    moments = {0: {"exp_avg": torch.zeros(9_000_000)}}
    large = save_encoder_file(tmp_path / "large.pt", model, model, opt={"state": moments})
    del model, moments
    assert large.stat().st_size > 110e6
    before = peak_bytes(reset=True)
    made = convert(large, tmp_path / "large", ConversionSettings(heads=8, size=32))
    peak = peak_bytes() - before
    assert made.bytes > 38e6 and "are equal" in made.compared[0]
    assert peak < 0.6 * made.bytes, f"{peak / 1e6:.0f} MB for {made.bytes / 1e6:.0f} MB kept"
