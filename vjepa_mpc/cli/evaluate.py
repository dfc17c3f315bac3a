"""`vjepa-mpc evaluate`: closed-loop success on a frozen manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from vjepa_mpc.cli import guarding
from vjepa_mpc.cli.building import (
    ACTOR,
    ACTOR_HELP,
    DRAFT_HELP,
    KNOTS_HELP,
    MODEL_HELP,
    OWN_HELP,
    PLANNER_HELP,
    PROPOSE_HELP,
    SET_HELP,
    VARY_HELP,
)
from vjepa_mpc.cli.contenders import BATCH_HELP, PHYSICS_HELP
from vjepa_mpc.cli.limiting import BALL_HELP, FIX_HELP, RATE_LIMIT_HELP
from vjepa_mpc.core.errors import InputError

if TYPE_CHECKING:
    from vjepa_mpc.episodes import EpisodeResult


GUARDRAILS = "Guardrails"


def evaluate(
    manifest: str = typer.Option("dev", help="Shipped manifest (dev, test, dev-varied, test-varied) or a JSON file."),
    task: str | None = typer.Option(
        None, help="Name or module:Class (default: the model's); without --model its shipped model, if there is one."
    ),
    model: list[str] = typer.Option([], help=f"{MODEL_HELP} May be repeated."),
    planner: str | None = typer.Option(None, help=f"{PLANNER_HELP} {ACTOR_HELP} {OWN_HELP}"),
    horizon: int | None = typer.Option(None, help="Model steps planned ahead."),
    samples: int | None = typer.Option(None, help="Candidates an iteration (starts of gradient and lbfgs)."),
    iterations: int | None = typer.Option(None, help="Iterations of a plan."),
    elites: int | None = typer.Option(None, help="Candidates that make the next distribution (cem, icem, discrete)."),
    settings: list[str] = typer.Option([], "--set", help=SET_HELP),
    running: float | None = typer.Option(
        None, help="Weight of imagined frames before the last (default: the model's, or 1)."
    ),
    nearest: float | None = typer.Option(
        None, min=0, max=1, help="Share of the imagined frame nearest to the goal (default: the model's, or 0)."
    ),
    critic: float | None = typer.Option(
        None, min=0, help="Cost of each control step that the model's critic foresees (default: the model's, or 0)."
    ),
    remember: float | None = typer.Option(
        None, min=0, help="Weight of the memory of what came to less than imagined (default: the model's, or 0)."
    ),
    propose: int | None = typer.Option(None, min=0, help=PROPOSE_HELP),
    actor_steps: int | None = typer.Option(
        None, min=1, help="Steps that an actor by itself does before it looks again (default: the model's, or 1)."
    ),
    actor_drawn: bool | None = typer.Option(
        None, "--actor-drawn/--actor-likeliest",
        help="What an actor by itself does: what it draws of its mixture, or the likeliest (default: the model's).",
    ),
    pairs: int | None = typer.Option(None, min=1, help="Only the first so many pairs."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of planner and floors."),
    floors: bool = typer.Option(True, "--floors/--no-floors", help="Also random, no-op and the scripted ceiling."),
    greedy: bool = typer.Option(False, "--greedy/--no-greedy", help="Also greedy-pixel, a slow floor."),
    guarded: bool = typer.Option(
        False, "--guarded", help="Guard the regions that the task forbids; the unguarded planner is played beside it."
    ),
    plain: bool = typer.Option(True, "--plain/--no-plain", help="With guardrails: also the unguarded planner."),
    rate: float | None = typer.Option(
        None, help="Actions a second of wall time, no plan waited for; what comes out depends on the machine."
    ),
    deadline: float | None = typer.Option(None, help="Seconds a plan may take; the same holds."),
    draft: int = typer.Option(0, min=0, help=DRAFT_HELP),
    knots: str | None = typer.Option(None, help=KNOTS_HELP),
    fix: list[str] = typer.Option([], help=FIX_HELP),
    ball: list[str] = typer.Option([], help=BALL_HELP),
    rate_limit: list[str] = typer.Option([], help=RATE_LIMIT_HELP),
    legs: int = typer.Option(1, min=1, help=guarding.LEGS_HELP, rich_help_panel=GUARDRAILS),
    leg_steps: int | None = typer.Option(None, min=1, help=guarding.LEG_STEPS_HELP, rich_help_panel=GUARDRAILS),
    keep_out: list[str] = typer.Option([], help=guarding.KEEP_OUT_HELP, rich_help_panel=GUARDRAILS),
    margin: float = typer.Option(0.01, help=guarding.MARGIN_HELP, rich_help_panel=GUARDRAILS),
    workspace: str | None = typer.Option(None, help=guarding.WORKSPACE_HELP, rich_help_panel=GUARDRAILS),
    pose_box: str | None = typer.Option(None, help=guarding.POSE_BOX_HELP, rich_help_panel=GUARDRAILS),
    avoid: list[Path] = typer.Option([], help=guarding.AVOID_HELP, rich_help_panel=GUARDRAILS),
    change_limit: str | None = typer.Option(None, help=guarding.CHANGE_HELP, rich_help_panel=GUARDRAILS),
    acceleration_limit: str | None = typer.Option(None, help=guarding.BEND_HELP, rich_help_panel=GUARDRAILS),
    watchdog: int | None = typer.Option(None, min=1, help=guarding.WATCHDOG_HELP, rich_help_panel=GUARDRAILS),
    surprise: bool = typer.Option(False, "--surprise", help=guarding.SURPRISE_HELP, rich_help_panel=GUARDRAILS),
    thresholds: Path | None = typer.Option(None, help=guarding.THRESHOLDS_HELP, rich_help_panel=GUARDRAILS),
    workers: int = typer.Option(1, help="Processes, or Ray actors with --ray-address."),
    threads: int = typer.Option(1, help="Torch threads a worker; pinned, since results depend on it in the last bit."),
    ray: bool = typer.Option(False, "--ray", help="Spread over a Ray started on this machine."),
    ray_address: str | None = typer.Option(None, help="Spread over the Ray cluster at this address."),
    batch: int = typer.Option(1, min=1, max=10_000, help=BATCH_HELP),
    physics_workers: int = typer.Option(0, min=0, help=PHYSICS_HELP),
    chunk: int | None = typer.Option(
        None, min=1, help="Candidates imagined at a time; pinned like the threads (256, or what fits at first)."
    ),
    vary: list[str] = typer.Option([], help=VARY_HELP),
    backend: str = typer.Option("auto", help="Renderer: auto, egl, osmesa or rays (no GL)."),
    out: Path | None = typer.Option(None, help="Folder for results.json and episodes; a run in it is resumed."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Success of world models on frozen start/goal pairs, with floors, ceiling and intervals.

    With --vary every pair has a look and a world of its own, varied in the factors named, for models and floors alike.
    A --task without a --model is played by its floors and its ceiling alone.
    """
    from vjepa_mpc.cli.building import (
        check_planner,
        choose_device,
        load_model,
        model_folder,
        own_planner,
        parse_levels,
        shipped_models,
        tell_planner,
    )
    from vjepa_mpc.cli.contenders import (
        PlannerOptions,
        acting,
        check_batch,
        floors_of,
        planning,
        shared_chunk,
        stage_of,
    )
    from vjepa_mpc.evaluation import ArenaSetup
    from vjepa_mpc.executor import LocalExecutor, RayExecutor
    from vjepa_mpc.memory import CHUNK
    from vjepa_mpc.robots.factory import find_task
    from vjepa_mpc.robots.tasks import load_manifest

    if planner not in (None, ACTOR):
        check_planner(planner)
    if rate is not None and not 0 < rate <= 1000:
        raise InputError(f"A rate of {rate} actions a second cannot be kept; give one above 0, at most 1000.")
    check_batch(
        batch, physics_workers, workers=workers, ray=ray or ray_address is not None,
        hurried=rate is not None or deadline is not None,
    )  # fmt: skip
    target = choose_device(device)
    sources: list[str | None] = [*model]
    if not sources:
        robot = "reacher" if task is None else find_task(task).robot
        sources = [None if robot == "reacher" else robot] if robot in shipped_models() else []
    worlds = {source: load_model(source, target) for source in sources}
    asked: Any = find_task(task or next(iter(worlds.values())).config.robot.name)
    if asked.missing:
        raise InputError(asked.missing)
    frozen = load_manifest(manifest, asked)
    at_a_time = chunk or _recorded_chunk(out) or shared_chunk(worlds, horizon, max(1, workers))
    if guarded and not asked.forbidden:
        raise InputError(f"{asked.name} forbids no region; name what to guard, for example with --keep-out.")
    rails = guarding.GuardOptions(
        (*keep_out, *(guarding.task_regions(asked) if guarded else ())), margin, workspace, pose_box, tuple(avoid),
        change_limit, acceleration_limit, watchdog, surprise, thresholds,
    )  # fmt: skip
    of_plans = PlannerOptions(
        "", horizon, samples, iterations, elites, tuple(settings), running, nearest, deadline, draft, critic,
        remember, knots, tuple(fix), tuple(ball), tuple(rate_limit), propose,
    )  # fmt: skip
    said = of_plans != PlannerOptions("") or rails.any or rate or legs > 1 or leg_steps or batch > 1
    planner = own_planner(worlds.values(), planner, bool(said))
    tell_planner(planner, worlds.values(), lambda line: typer.echo(line, err=True))
    asked_for = replace(of_plans, planner=planner)
    if planner != ACTOR and (actor_steps, actor_drawn) != (None, None):
        raise InputError(
            f"--actor-steps, --actor-drawn and --actor-likeliest are of the actor by itself; add --planner {ACTOR}."
        )
    if planner == ACTOR and said:
        raise InputError(
            f"--planner {ACTOR} plans nothing: leave out what is said of plans, batches, time and guardrails."
        )
    contenders: dict[str, Any] = {}
    for source, world in worlds.items():
        stage = stage_of(world, source or "the shipped model", asked, backend)
        name = source or "shipped"
        if planner == ACTOR:
            contenders[name] = acting(world, stage, name, actor_steps, actor_drawn)
            continue
        for guards in [*([None] if plain or not rails.any else []), *([rails] if rails.any else [])]:
            made = guarding.make_guards(guards, world, model_folder(source), asked) if guards else None
            label = f"{name}, guarded" if guards else name
            one = planning(
                world, stage, label, asked_for, at_a_time, legs=legs, leg_steps=leg_steps, guards=made,
                rate=rate, batch=batch,
            )  # fmt: skip
            if guards:
                one.played["guards"] = guards.record()
            contenders[label] = one
    contenders |= floors_of(asked, backend, greedy=greedy, plain=floors)
    executor: Any = LocalExecutor(workers, threads)
    if ray or ray_address:
        executor = RayExecutor(workers, ray_address, threads=threads)
    options: dict[str, Any] = {
        "manifest": frozen.sha256, "planner": planner, "horizon": horizon, "samples": samples,
        "iterations": iterations, "elites": elites, "running": 1.0 if running is None else running, "seed": seed,
        "threads": threads, "device": target.type, "backend": backend,
    }  # fmt: skip
    if at_a_time != CHUNK:
        options["chunk"] = at_a_time
    if settings:
        options["set"] = list(settings)
    more = {
        "legs": legs if legs > 1 else None, "leg_steps": leg_steps, "rate": rate, "deadline": deadline,
        "draft": draft or None, "batch": batch if batch > 1 else None, "nearest": nearest,
        "critic": critic,
        "remember": remember, "knots": knots, "fix": list(fix) or None, "ball": list(ball) or None,
        "rate_limit": list(rate_limit) or None, "propose": propose, "actor_steps": actor_steps,
        "actor_drawn": actor_drawn,
    }  # fmt: skip
    options |= {key: value for key, value in more.items() if value is not None}
    levels = parse_levels(vary)
    if levels:
        options["vary"] = levels
    run = _Run(frozen.split, frozen.sha256, options, out, json_output)
    for name, one in contenders.items():
        arena = ArenaSetup(one.robot, one.policy, asked, seed, levels)
        run.play(name, one, frozen, arena, executor, pairs, physics_workers)
    run.close()


class _Run:
    """Plays policies one after the other, shows progress, prints and saves the table."""

    def __init__(self, split: str, sha256: str, options: dict[str, Any], out: Path | None, as_json: bool) -> None:
        from vjepa_mpc.pretrain.run_folder import begin

        self.split, self.sha256, self.options, self.out, self.as_json = split, sha256, options, out, as_json
        self.rows: dict[str, dict[str, Any]] = {}
        if out is not None:
            begin(out, "evaluate", options)

    def play(
        self, name: str, one: Any, manifest: Any, setup: Any, executor: Any, pairs: int | None, physics: int
    ) -> None:
        """Play contender `one`; what its episodes depend on keeps them apart from others in the same folder."""
        import hashlib
        import json

        from vjepa_mpc.cli.episode_bar import EpisodeBar
        from vjepa_mpc.evaluation import evaluate as play
        from vjepa_mpc.results import read_log, summarise

        played = one.played
        total = len(manifest.pairs) if pairs is None else min(pairs, len(manifest.pairs))
        key = hashlib.sha256(json.dumps(played, sort_keys=True).encode()).hexdigest()[:8] if played else ""
        log = None if self.out is None else self.out / f"episodes-{_plain(f'{name} {key}')}.jsonl"
        kept = [] if log is None else [one for index, one in read_log(log).items() if index < total]
        done, held = len(kept), sum(one.held for one in kept)
        with EpisodeBar(name, stay=True, lines=True) as show:
            show(done, total, f"held {held}" if kept else "")

            def on_result(result: EpisodeResult) -> None:
                nonlocal done, held
                done, held = done + 1, held + result.held
                show(done, total, f"held {held}")

            try:
                results = play(
                    manifest, setup, executor, pairs=pairs, log=log, on_result=on_result, batch=one.batch,
                    physics=physics,
                )  # fmt: skip
            except KeyboardInterrupt:
                self._leave()
        self.rows[name] = summarise(results, setup.task) | played

    def _leave(self) -> NoReturn:
        if self.out is None:
            typer.echo("Interrupted: nothing is kept; with --out what is finished would be.", err=True)
        else:
            typer.echo(f"Interrupted: finished episodes are kept in {self.out}; the same command goes on.", err=True)
        raise typer.Exit(130)

    def close(self) -> None:
        import json

        from vjepa_mpc.core.files import write_json
        from vjepa_mpc.core.settings import provenance

        record = {
            "manifest": self.split, "sha256": self.sha256, "settings": self.options, "results": self.rows,
            "provenance": provenance(),
        }  # fmt: skip
        if self.out is not None:
            write_json(self.out / "results.json", record)
        if self.as_json:
            typer.echo(json.dumps(record, indent=2))
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{self.split} (sha256 {self.sha256[:12]})")
        forbids = any(row["violations"]["count"] for row in self.rows.values()) or "guards" in str(self.rows)
        columns = ["policy", "n", "held [95 % Wilson]", "hit", "median end", "step (median)", "evaluations/step"]
        for column in columns + ["entered [95 % below]"] * forbids:
            table.add_column(column, overflow="fold")
        for name, row in self.rows.items():
            held, hit = row["held"], row["hit"]
            table.add_row(
                name,
                str(row["episodes"]),
                f"{100 * held['rate']:.0f} % [{100 * held['wilson_low']:.0f}, {100 * held['wilson_high']:.0f}]",
                f"{100 * hit['rate']:.0f} %",
                f"{100 * row['final_distance_median_m']:.1f} cm",
                f"{row['milliseconds_median']:.0f} ms" + _each(row),
                f"{row['evaluations_per_step']:.0f}",
                *[f"{row['violations']['count']} [{100 * row['violations']['upper_95']:.1f} %]"] * forbids,
            )
        screen = Console()
        # A file or a pipe has no width: nothing is folded there.
        (screen if screen.is_terminal else Console(width=200)).print(table)


def _each(row: dict[str, Any]) -> str:
    """An episode's share of a decision that is made for several."""
    each = row.get("milliseconds_each_median")
    return "" if each is None else f" ({each:.0f} each)"


def _recorded_chunk(out: Path | None) -> int | None:
    """What the run in `out` was begun with; None where there is none. The usual number is not written down."""
    from vjepa_mpc.core.files import read_json
    from vjepa_mpc.memory import CHUNK

    if out is None or not (out / "settings.json").is_file() or not any(out.glob("*.jsonl")):
        return None
    record = read_json(out / "settings.json")
    settings = record.get("settings") if isinstance(record, dict) else None
    return int(settings.get("chunk", CHUNK)) if isinstance(settings, dict) else None


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
