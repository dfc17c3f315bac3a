"""The frozen encoder against Hugging Face's own forward, against leaks, and against broken folders."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2Model

from vjepa_mpc.attention import attend
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.encoder import (
    PixelPatches,
    VJepaFrames,
    build_encoder,
    embed_patches,
    encode_clips,
    encode_frames,
    frame_encoder,
    freeze,
    load_encoder,
    rotary_tables,
    weights_hash,
)


def config(**changes: Any) -> VJEPA2Config:
    fields = {
        "crop_size": 16, "patch_size": 4, "tubelet_size": 2, "frames_per_clip": 4, "hidden_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2.0, "pred_num_hidden_layers": 0,
        "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_mask_tokens": 1,
    }  # fmt: skip
    return VJEPA2Config(**{**fields, **changes})


def make(**changes: Any) -> VJEPA2Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = freeze(build_encoder(config(**changes)))
        for parameter in model.encoder.parameters():  # Hugging Face starts near zero: attention would hardly matter
            parameter.normal_(std=0.3)
    return model


def clips(batch: int = 2, frames: int = 4, size: int = 16) -> Tensor:
    return torch.randn(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def hugging_face(model: VJEPA2Model, pixels: Tensor) -> Tensor:
    return model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state


# Heads of 12, 8 (2 dimensions an axis, 2 left over) and 24 dimensions.
@pytest.mark.parametrize("heads", [2, 3, 1])
def test_encoding_clips_equals_hugging_face(heads: int) -> None:
    model = make(num_attention_heads=heads)
    torch.testing.assert_close(encode_clips(model, clips()), hugging_face(model, clips()), atol=2e-5, rtol=1e-5)


def test_without_bias_of_queries_keys_and_values_too() -> None:
    model = make(qkv_bias=False)
    torch.testing.assert_close(encode_clips(model, clips()), hugging_face(model, clips()), atol=2e-5, rtol=1e-5)


def test_single_frames_are_doubled_as_hugging_face_doubles_them() -> None:
    model, frames = make(), clips(3, 1)[:, 0]
    torch.testing.assert_close(encode_frames(model, frames), hugging_face(model, frames[:, None]), atol=2e-5, rtol=1e-5)


def test_the_embedding_is_the_strided_convolution() -> None:
    model, pixels = make(), clips()
    wanted = model.encoder.embeddings.patch_embeddings(pixels.permute(0, 2, 1, 3, 4))
    torch.testing.assert_close(embed_patches(model, pixels, None), wanted, atol=1e-5, rtol=1e-5)


def test_all_ids_in_any_order_give_the_whole_clips_tokens() -> None:
    model, pixels = make(), clips()
    order = torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    whole = encode_clips(model, pixels)
    picked = torch.gather(whole, 1, order[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(encode_clips(model, pixels, order), picked, atol=1e-5, rtol=1e-5)


def test_nothing_of_a_dropped_patch_leaks() -> None:
    """Bit for bit: whatever stands in any patch that is not kept, even NaN."""
    model, pixels = make(), clips(1)
    kept = torch.tensor([[1, 4, 7, 17, 22, 30]])
    wanted = encode_clips(model, pixels, kept)
    for dropped in set(range(32)) - set(kept[0].tolist()):
        frame, place = divmod(dropped, 16)
        row, column = divmod(place, 4)
        changed = pixels.clone()
        changed[0, 2 * frame : 2 * frame + 2, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = torch.nan
        assert torch.equal(encode_clips(model, changed, kept), wanted), dropped
    for present in kept[0].tolist():  # and each kept one matters, so that the test above can fail
        frame, place = divmod(present, 16)
        row, column = divmod(place, 4)
        changed = pixels.clone()
        changed[0, 2 * frame, 0, 4 * row, 4 * column] += 1
        assert not torch.equal(encode_clips(model, changed, kept), wanted), present


def test_kept_patches_keep_their_positions() -> None:
    """One token attends to itself alone, so two tokens are needed to see where they stand."""
    model, pixels = make(), torch.zeros(1, 4, 3, 16, 16)
    near = encode_clips(model, pixels + 0.5, torch.tensor([[0, 1]]))
    torch.testing.assert_close(near[:, :1], near[:, 1:])  # equal pixels: positions only turn queries and keys
    pixels[:, :, :, :4, :4] = 1.0
    near, far = (encode_clips(model, pixels, torch.tensor([ids])) for ids in ([0, 1], [0, 15]))
    assert float((near[:, 0] - far[:, 0]).abs().max()) > 1e-4


def test_rotary_tables_by_hand() -> None:
    cos, sin = rotary_tables(torch.tensor([[16 + 4 * 2 + 3]]), 4, 14, torch.float32)  # frame 1, row 2, column 3
    angles = torch.tensor([1.0, 0.01, 1.0, 0.01, 2.0, 0.02, 2.0, 0.02, 3.0, 0.03, 3.0, 0.03, 0.0, 0.0])
    sign = torch.tensor([-1.0, 1.0]).repeat(7)
    torch.testing.assert_close(cos[0, 0, 0], angles.cos())
    torch.testing.assert_close(sin[0, 0, 0], sign * angles.sin())


@pytest.mark.parametrize("size", [12, 20, 32])
def test_another_picture_size_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"takes 16x16 pictures, got {size}x{size}"):
        encode_clips(make(), clips(1, 2, size))


@pytest.mark.parametrize("grad", [False, True])
def test_both_forms_of_attention_are_the_definition(grad: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 5, 3, 8, generator=generator) for _ in range(3))
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 8**0.5 + mask
    wanted = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
    torch.testing.assert_close(attend(query, key, value, mask), wanted)
    with torch.set_grad_enabled(grad):  # with gradients, the form for bfloat16 on CPUs
        low = attend(*(part.bfloat16() for part in (query, key, value)), mask.bfloat16())
    torch.testing.assert_close(low.float(), wanted, atol=0.03, rtol=0.03)


def test_a_saved_encoder_loads_equal_and_frozen(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path)
    assert weights_hash(loaded) == weights_hash(model)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(encode_clips(loaded, clips()), encode_clips(model, clips()))


def test_without_mask_predictor_weights_an_encoder_is_still_itself(tmp_path: Path) -> None:
    """They are not used; drawn anew at each loading they would change the hash that caches are keyed by."""
    from safetensors.torch import load_file, save_file

    make().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if not key.startswith("predictor.")}
    save_file(kept, file, {"format": "pt"})
    assert weights_hash(load_encoder(tmp_path)) == weights_hash(load_encoder(tmp_path))


def test_the_hash_sees_names_shapes_types_and_every_bit() -> None:
    base = torch.nn.Linear(3, 2)
    seen = {weights_hash(base)}
    assert weights_hash(base) in seen
    with torch.no_grad():
        base.weight[1, 2] = torch.nextafter(base.weight[1, 2], torch.tensor(9.0))
    turned, renamed = torch.nn.Linear(2, 3), torch.nn.Module()
    turned.weight.data, turned.bias.data = base.weight.data.view(3, 2), base.bias.data
    renamed.other, renamed.bias = torch.nn.Parameter(base.weight.data), base.bias
    for module in (base, turned, renamed, torch.nn.Linear(3, 2).double()):
        assert weights_hash(module) not in seen
        seen.add(weights_hash(module))


class Bomb:
    """Leaves a file where it was told to when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("damage", ["no config", "no weights", "truncated", "lacking", "pickle", "not json", "other"])
def test_broken_folders_are_refused_in_a_sentence(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    folder, mark = tmp_path / "encoder", tmp_path / "ran"
    make().save_pretrained(folder)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "not json":
        (folder / "config.json").write_text('{"crop_size": ')
    elif damage == "other":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 24}))
    elif damage == "lacking":
        tensors = load_file(file)
        tensors.pop("encoder.layer.1.attention.key.weight")
        save_file(tensors, file, {"format": "pt"})
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    if damage == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
        (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(InputError) as caught:
        load_encoder(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["nothing", "/nowhere/encoder", "./encoder", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_encoder(name)


def test_a_missing_folder_beside_others_is_not_taken_for_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="runs/encodre does not exist"):
        load_encoder("runs/encodre")


def test_pixel_patches_are_the_pixels() -> None:
    pixels = clips(2, 1, 8)[:, 0]
    tokens = PixelPatches(8, 4)(pixels)
    for place, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        assert torch.equal(tokens[:, place], pixels[:, :, row : row + 4, column : column + 4].flatten(1))
    with pytest.raises(InputError, match="must be 8x8"):
        PixelPatches(8, 4)(clips(1, 1, 16)[:, 0])
    for patch in (0, 3):
        with pytest.raises(InputError, match="do not divide"):
            PixelPatches(8, patch)


def test_descriptions_build_the_same_encoder_again() -> None:
    model = VJepaFrames(make())
    again = frame_encoder(json.loads(json.dumps(model.describe())))
    assert again.describe() == model.describe()
    assert (again.grid, again.dim, again.size) == (model.grid, model.dim, model.size) == (4, 24, 16)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(clips(2, 1)[:, 0]), model(clips(2, 1)[:, 0]))
    assert frame_encoder(PixelPatches(8, 4).describe()).describe() == PixelPatches(8, 4).describe()
    with pytest.raises(InputError, match=r"restore config\.json"):
        frame_encoder({**model.describe(), "hidden_size": "wide"})
