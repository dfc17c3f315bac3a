"""`bench objectives`: rows made of this program's own commands, gone on with, and put in a table."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

sys.path.insert(0, str(Path(__file__).parent / "pretrain"))
from moving_dot import make_store

from vjepa_mpc.cli import bench_objectives
from vjepa_mpc.cli import main as cli
from vjepa_mpc.cli.bench_objectives import ROWS, Terms, make_row, stages_of
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.objective_table import figures, markdown, read_rows

TERMS = Terms(25.0, 15.0, "dev", 50, 3, ("--width", "64"), ("--steps", "7"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "reach.zarr", robot="reacher")


def written(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stages that leave files as the real ones do, and take no time; the lines that were run."""
    lines: list[list[str]] = []

    def run_stage(line: list[str]) -> tuple[int, str]:
        lines.append(line)
        command, out = line[0], Path(line[line.index("--out") + 1])
        score = {"r2": 0.5, "error": 0.1, "examples": 9}
        training = {"steps": 100, "seconds": 20.0, "trainer": {"batch": 64}}
        if command in ("pretrain", "train"):
            written(out, "log.jsonl", '{"step": 0, "loss": 2}\n{"step": 20, "loss": 1}\n')
        if command == "pretrain":
            written(out / "encoder", "vjepa_mpc.json", {"training": training})
        elif command == "train":
            written(out / "model", "config.json", {"training": training})
        elif command == "probe":
            shares = {"x": score, "y": {**score, "r2": 0.7}, "still": {**score, "r2": None}}
            written(out, "probe.json", {"scores": {"(mean)": {"none": {}}, "e": {"linear": {"all": shares}}}})
        elif command == "validate-model":
            group = {"rank": 0.2, "error": [3.0, 1.0], "copy": [1.0, 4.0], "end_chosen": {"median": 0.05}}
            written(out, "validation.json", {"groups": {"all": group}, "unit": "m", "ranks": [0.1]})
        else:
            success = {
                "episodes": 50, "hit": {"rate": 0.4}, "final_distance_median_m": 0.02,
                "held": {"count": 10, "rate": 0.2, "wilson_low": 0.11, "wilson_high": 0.33},
            }  # fmt: skip
            floors = {"random": success} if "--floors" in line else {}
            written(out, "results.json", {"results": {"runs/x": success, **floors}})
        return 0, ""

    monkeypatch.setattr(bench_objectives, "run_stage", run_stage)
    return lines


def test_every_line_of_every_row_is_one_that_its_command_takes(tmp_path: Path) -> None:
    root: Any = typer.main.get_command(cli.build_app())
    for name in ROWS:
        for line in stages_of(name, tmp_path, TERMS, tmp_path / name).values():
            command = root.get_command(root.make_context("vjepa-mpc", [line[0]]), line[0])
            command.make_context(line[0], line[1:])


def test_rows_are_on_equal_terms() -> None:
    lines = {name: stages_of(name, Path("s"), TERMS, Path("f")) for name in ROWS}
    asked = {name: shlex.join(one["encoder"]) for name, one in lines.items() if "encoder" in one}
    assert len(set(asked.values())) == len(asked) == 7
    for line in asked.values():
        assert line.startswith("pretrain s --out f/encoder --minutes 25 --seed 3") and line.endswith("--width 64")
    for name, one in lines.items():
        assert shlex.join(one["predictor"]).endswith("--out f/predictor --seed 3 --steps 7")  # no minutes beside steps
        assert ("--floors" in one["success"]) == (name == "untrained")
    assert lines["pixels"]["probes"][1] == "pixels" and lines["lejepa"]["probes"][1] == "f/encoder"


def test_a_row_is_made_once_and_its_figures_are_those_of_its_files(
    store: Path, tmp_path: Path, played: list[list[str]]
) -> None:
    out = tmp_path / "out"
    make_row("vjepa-sigreg", store, TERMS, out)
    assert [line[0] for line in played] == ["pretrain", "train", "probe", "validate-model", "evaluate"]
    make_row("vjepa-sigreg", store, TERMS, out)
    assert len(played) == 5
    (row,) = read_rows(out)
    told = figures(row)
    assert told["task"] == "reach" and told["held"]["count"] == 10 and told["pairs"] == 50
    assert told["linear_r2"] == pytest.approx(0.6) and told["attentive_r2"] is None
    assert told["error_over_copy"] == 0.25 and told["rank"] == 0.2 and told["end_chosen"] == 0.05
    assert told["clips_a_second"] == pytest.approx(320) and told["encoder_steps"] == 100
    with pytest.raises(InputError, match="other terms or data"):
        make_row("vjepa-sigreg", store, Terms(1.0, 1.0, "dev", 50, 3), out)


def test_a_row_goes_on_where_it_was_cut_short(
    store: Path, tmp_path: Path, played: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench_objectives.run_stage

    def interrupted(line: list[str]) -> tuple[int, str]:
        return (130, "Interrupted") if line[0] == "probe" else whole(line)

    monkeypatch.setattr(bench_objectives, "run_stage", interrupted)
    with pytest.raises(typer.Exit) as left:
        make_row("ijepa", store, TERMS, tmp_path / "out")
    assert left.value.exit_code == 130
    told = figures(read_rows(tmp_path / "out")[0])
    assert told["predictor_steps"] == 100 and told["linear_r2"] is None and told["held"] is None
    monkeypatch.setattr(bench_objectives, "run_stage", whole)
    make_row("ijepa", store, TERMS, tmp_path / "out")
    assert [line[0] for line in played] == ["pretrain", "train", "probe", "validate-model", "evaluate"]


def test_a_collapse_is_told_and_anything_else_stops(
    store: Path, tmp_path: Path, played: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def collapses(line: list[str]) -> tuple[int, str]:
        written(Path(line[line.index("--out") + 1]), "health.png", "")
        return 2, "Error: The encoder collapsed at step 140."

    monkeypatch.setattr(bench_objectives, "run_stage", collapses)
    make_row("vjepa-ema", store, TERMS, tmp_path / "out")
    monkeypatch.setattr(bench_objectives, "run_stage", lambda line: (2, "Error: the disk is full."))
    make_row("vjepa-ema", store, TERMS, tmp_path / "out")  # it is done: there is no predictor of it
    with pytest.raises(InputError, match=r"vjepa-mpc pretrain .* ended with code 2: Error: the disk is full"):
        make_row("lejepa", store, TERMS, tmp_path / "out")
    assert "| vjepa-ema | none: The encoder collapsed at step 140. | - |" in markdown(read_rows(tmp_path / "out"))


def test_the_command_makes_rows_and_prints_what_there_is(
    store: Path, tmp_path: Path, played: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(*arguments: object) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(one) for one in ("bench", "objectives", *arguments, "--out", tmp_path / "out")])
        return left.value.code, *capsys.readouterr()

    assert leave()[0] == 2
    assert leave(store, "--row", "vjepo")[0] == 2
    code, text, _ = leave(store, "--row", "untrained", "--row", "vjepa-inverse", "--pairs", 50)
    assert code == 0 and [line[0] for line in played].count("train") == 2
    assert text.index("| vjepa-inverse | 10 of 50 [11, 33] | 40 % | 2.0 cm | 0.200 | 0.050 m | 0.250 | 0.600 | - | 320")
    assert text.index("vjepa-inverse") < text.index("untrained") and "floors and script: random 20 %." in text
    assert (tmp_path / "out" / "table.md").read_text() == text
    again, told, _ = leave("--json")
    assert again == 0 and json.loads(told) == json.loads((tmp_path / "out" / "table.json").read_text())
    assert len(json.loads(told)) == 2


@pytest.mark.slow
def test_a_real_row_on_tiny_settings(tmp_path: Path) -> None:
    """Its stages are run for real, on a few episodes of the reacher."""
    out = str(tmp_path / "logs.zarr")
    with pytest.raises(SystemExit) as left:
        cli.main(["collect", "--episodes", "6", "--backend", "rays", "--workers", "1", "--out", out])
    assert left.value.code == 0
    tiny = "--steps 2 --batch 4 --width 24 --depth 1 --heads 1"
    with pytest.raises(SystemExit) as left:
        cli.main([
            "bench", "objectives", out, "--row", "lejepa", "--row", "untrained", "--pairs", "1",
            "--out", str(tmp_path / "out"), "--pretrain-with", tiny, "--train-with", tiny,
            "--probe-with", "--frames 40 --held 20 --steps 2", "--validate-with", "--clips 4 --candidates 8",
            "--evaluate-with", "--samples 8 --backend rays",
        ])  # fmt: skip
    assert left.value.code == 0
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["encoder"] for row in table] == ["lejepa", "untrained"]
    for row in table:
        assert row["failed"] is None and row["pairs"] == 1 and row["predictor_steps"] == 2
        assert all(row[name] is not None for name in ("held", "rank", "end_chosen", "linear_r2", "attentive_r2"))
    assert set(table[1]["floors"]) == {"random", "no-op", "scripted (ceiling)"}
