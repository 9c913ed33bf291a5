"""`convert plan recipe=NAME …`: print what the conversion will do, from headers alone.

The plan has what each matrix becomes, the size of the result, memory, disk, and every problem to
solve first. It reads no weight, and downloads no repository from the hub.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

from converter.cli.compose import compose_recipe
from converter.cli.verbs import key_values
from converter.engine.plan import MatrixPlan, Plan, make_plan
from converter.engine.registry import make_passes
from converter.machine.disk import RESULT, free_bytes
from converter.progress import format_bytes
from converter.storage.cache import only_reading

EXIT_PROBLEMS = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    key_values(parser, "recipe=NAME and what a run takes further")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb; the exit code is 0 only when nothing stands against the conversion."""
    recipe = compose_recipe(parsed.overrides)
    with only_reading():
        plan = make_plan(recipe, make_passes(recipe.passes))
    print(plan_text(plan))
    return EXIT_PROBLEMS if plan.problems else 0


def plan_text(plan: Plan) -> str:
    """The plan as a person reads it."""
    lines = [*_heading(plan)]
    if plan.decoder is not None:
        lines += [*_model(plan), "", *_matrix_lines(plan.matrices), "", *_sizes(plan)]
    if plan.notes:
        lines += ["", "Notes", *(f"- {note}" for note in plan.notes)]
    if plan.problems:
        lines += ["", f"{len(plan.problems)} to be solved first"]
        lines += [f"- {problem}" for problem in plan.problems]
    return "\n".join(lines)


def _heading(plan: Plan) -> Iterator[str]:
    yield _row("Recipe", plan.recipe.name)
    yield _row("Passes", " → ".join(plan.passes))


def _model(plan: Plan) -> Iterator[str]:
    assert plan.decoder is not None
    checkpoint, arch = plan.decoder.checkpoint, plan.decoder.architecture
    tensors = checkpoint.tensors.values()
    types = sorted({str(weight.dtype).removeprefix("torch.") for weight in tensors})
    yield _row("Source", _source(plan, checkpoint.origin))
    yield _row(
        "",
        f"{len(tensors)} tensors, {plan.parameters / 1e9:.2f} G parameters, {', '.join(types)}, "
        f"{format_bytes(sum(weight.nbytes for weight in tensors))}",
    )
    for stored, count in plan.decoder.stored.items():
        yield _row("", f"{count} weights quantized: {stored}")
    if plan.decoder.ignored:
        yield _row("", f"ignored: {', '.join(plan.decoder.ignored)}")
    yield _row(
        "Model",
        f"{arch.num_hidden_layers} layers, hidden size {arch.hidden_size}, "
        f"{arch.num_attention_heads} heads, {arch.num_key_value_heads} KV heads, "
        f"vocabulary {arch.vocab_size}",
    )
    if arch.experts is not None:
        yield _row("", f"{sum(arch.experts.layers)} layers with {arch.experts.said}")


def _source(plan: Plan, origin: Mapping[str, object]) -> str:
    if plan.unreached:
        return f"{plan.unreached} (not reached: the sizes are those that the recipe states)"
    return {
        "hub": f"{origin.get('repo')} at {origin.get('commit')}",
        "gguf": f"the GGUF file {origin.get('file')}: {origin.get('types')}",
        "local": f"the folder {origin.get('folder')}",
        "synthetic": f"synthetic weights, seed {origin.get('seed')}",
    }.get(str(origin.get("kind")), str(origin.get("kind")))


def _matrix_lines(matrices: Sequence[MatrixPlan]) -> Iterator[str]:
    rows = [
        (
            f"{item.count} ×",
            item.kind,
            f"{item.shape[0]} × {item.shape[1]}",
            item.operator,
            item.form,
            format_bytes(item.nbytes),
        )
        for item in matrices
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield _row("" if number else "Matrices", "  ".join(cells).rstrip())


def _sizes(plan: Plan) -> Iterator[str]:
    yield _row("Output", f"{plan.output}")
    yield _row("", f"{format_bytes(plan.output_bytes)}, {plan.bits_per_weight:.2f} bits per weight")
    yield _row("", ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.files.items()))
    unknown = f"; {', '.join(plan.unknown_memory)} not counted" if plan.unknown_memory else ""
    where = f" (in {plan.peak_pass})" if plan.peak_pass else ""
    yield _row("Memory", f"about {format_bytes(plan.peak_memory)} at the peak{where}{unknown}")
    fetch = f", {format_bytes(plan.fetch_bytes)} of it to fetch" if plan.fetch_bytes else ""
    yield _row(
        "Disk",
        f"{format_bytes(plan.disk_bytes)} needed{fetch}; {format_bytes(plan.disk_free)} free",
    )
    for room in plan.rooms:
        if room.nbytes > 0 and room.purpose != RESULT:  # the result's own size is known better
            free = format_bytes(free_bytes(room.folder) or 0)
            needed = f"{format_bytes(room.nbytes)} meanwhile in {room.folder}"
            yield _row("", f"{needed} for {room.purpose}; {free} free")


def _row(name: str, text: str) -> str:
    return f"{name:<10}{text}"
