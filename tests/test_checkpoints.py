"""Checkpoints in Meta's layout: read exactly, refused when broken, never executed."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vjepa_mpc.checkpoints import encoder_from_checkpoint, predictor_from_checkpoint, read_meta_checkpoint
from vjepa_mpc.core.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
TINY = {"grid": (4, 4), "heads": 4, "max_frames": 8}


def rewritten(path: Path, part: str, change: dict[str, torch.Tensor | None]) -> Path:
    """The tiny checkpoint with tensors of one part replaced (or, None, dropped)."""
    content = torch.load(GOLDEN / "ac_tiny.pt", weights_only=True)
    content[part] = dict(content[part])  # the two encoders of this file are one and the same dict
    for name, value in change.items():
        if value is None:
            del content[part][name]
        else:
            content[part][name] = value
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["ac_tiny", "ac_tiny_extrinsics"])
def test_golden_encoder(name: str) -> None:
    z = np.load(GOLDEN / f"{name}.npz")
    pixels = ((torch.from_numpy(z["frames"]) / 255.0 - MEAN) / STD).permute(0, 3, 1, 2)
    model = encoder_from_checkpoint(GOLDEN / f"{name}.pt", heads=2, image_size=64)
    with torch.no_grad():
        doubled = model(pixels[:, None].repeat(1, 2, 1, 1, 1), skip_predictor=True).last_hidden_state
        clip = model(pixels[None, :2], skip_predictor=True).last_hidden_state
    torch.testing.assert_close(doubled, torch.from_numpy(z["encoder_out_doubled"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(clip, torch.from_numpy(z["encoder_out_clip"]), rtol=0, atol=1e-5)


def test_parts_present_and_prefixes_gone() -> None:
    parts = read_meta_checkpoint(GOLDEN / "ac_tiny.pt")
    assert set(parts) == {"encoder", "target_encoder", "predictor"}
    assert set(read_meta_checkpoint(GOLDEN / "ac_wide.pt")) == {"predictor"}
    names = [name for part in parts.values() for name in part]
    assert not any(name.startswith(("module.", "backbone.")) for name in names)
    assert "patch_embed.proj.weight" in parts["encoder"]


def test_online_and_averaged_encoder_are_told_apart(tmp_path: Path) -> None:
    name = "module.backbone.norm.weight"
    path = rewritten(tmp_path / "two.pt", "encoder", {name: torch.full((48,), 7.0)})
    online = encoder_from_checkpoint(path, "encoder", heads=2, image_size=64)
    averaged = encoder_from_checkpoint(path, heads=2, image_size=64)
    assert (online.encoder.layernorm.weight == 7.0).all()
    assert not (averaged.encoder.layernorm.weight == 7.0).any()
    with pytest.raises(InputError, match="no 'encoder'; it has predictor"):
        encoder_from_checkpoint(GOLDEN / "ac_wide.pt", "encoder", heads=2, image_size=64)


def test_reading_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    predictor_from_checkpoint(GOLDEN / "ac_tiny.pt", **TINY)
    encoder_from_checkpoint(GOLDEN / "ac_tiny.pt", heads=2, image_size=64)
    assert torch.equal(torch.get_rng_state(), state)


def test_missing_left_over_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    missing = rewritten(tmp_path / "a.pt", "predictor", {"module.predictor_norm.bias": None})
    with pytest.raises(InputError, match=r"missing \['predictor_norm.bias'\], left over none"):
        predictor_from_checkpoint(missing, **TINY)
    extra = rewritten(tmp_path / "b.pt", "target_encoder", {"module.backbone.cls_token": torch.zeros(1, 16, 48)})
    with pytest.raises(InputError, match=r"missing none, left over \['cls_token'\]"):
        encoder_from_checkpoint(extra, heads=2, image_size=64)
    shape = rewritten(tmp_path / "c.pt", "predictor", {"module.predictor_blocks.1.attn.proj.bias": torch.zeros(5)})
    with pytest.raises(InputError, match=r"predictor_blocks.1.attn.proj.bias .* \(5,\) and should be \(96,\)"):
        predictor_from_checkpoint(shape, **TINY)
    with pytest.raises(InputError, match="5 heads"):
        predictor_from_checkpoint(GOLDEN / "ac_tiny.pt", **{**TINY, "heads": 5})
    with pytest.raises(InputError, match="7 heads"):
        encoder_from_checkpoint(GOLDEN / "ac_tiny.pt", heads=7, image_size=64)


class _Trap:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "trap.pt"
    content = {"predictor": {"a": torch.zeros(1)}, "extra": _Trap(sprung)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"trap\.pt"):
        read_meta_checkpoint(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"trap\.pt"):
        read_meta_checkpoint(path)
    assert not sprung.exists()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an archive, `torch.load` unpacks whole what it does not map: a small file could fill the memory."""
    plain, path = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    torch.save({"predictor": {"a": torch.zeros(1)}, "note": "0" * 4_000_000}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert path.stat().st_size < 40_000 and set(read_meta_checkpoint(plain)) == {"predictor"}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the file was unpacked")

    monkeypatch.setattr(torch, "load", never)
    with pytest.raises(InputError, match=r"bomb\.pt holds compressed or overlapping"):
        read_meta_checkpoint(path)
    liar = plain.read_bytes()
    at = liar.index(b"PK\x01\x02") + 24  # the unpacked size of the first entry, in the directory
    path.write_bytes(liar[:at] + (1 << 30).to_bytes(4, "little") + liar[at + 4 :])
    with pytest.raises(InputError, match="overlapping"):
        read_meta_checkpoint(path)


def test_broken_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole = (GOLDEN / "ac_wide.pt").read_bytes()
    path = tmp_path / "x.pt"
    for content in (b"", b"not a checkpoint", whole[:1000], whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.pt"):
            read_meta_checkpoint(path)
    for content, words in (
        (b"", "it is empty"), (b"PK", "it is no archive"), (b"not a checkpoint", "it is no archive as torch.save"),
        (whole[: len(whole) // 2], "begins like one and breaks off"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(InputError, match=words) as refused:
            read_meta_checkpoint(path)
        assert "mmap" not in str(refused.value)
    for content in (
        {"weights": {}},
        [1, 2],
        torch.zeros(3),
        {"predictor": torch.zeros(3)},
        {"encoder": {"a": 1}},
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"x\.pt"):
            read_meta_checkpoint(path)
    with pytest.raises(InputError, match="not a file"):
        read_meta_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="not a file"):
        read_meta_checkpoint(tmp_path)
