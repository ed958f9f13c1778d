"""Commands on weights and data: models, fetch, data check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssah_lens.cli.app import app, data_app
from ssah_lens.cli.options import (
    AnyDevice,
    AnyDtype,
    AnySeed,
    Json,
    Quiet,
    Shell,
    run,
)
from ssah_lens.errors import Fault
from ssah_lens.show.terminal import estimate, print_table

if TYPE_CHECKING:
    from ssah_lens.chat.check import Matching


@app.command()
def models(
    device: AnyDevice = "cpu",
    dtype: AnyDtype = "float32",
    seed: AnySeed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Built-in models: sizes, licences, what is cached."""
    from ssah_lens.chat.built_in import BUILT_IN, cached_folder, is_cached

    rows: list[dict[str, Any]] = [
        {
            "name": b.name,
            "parameters": b.parameters,
            "download_bytes": b.n_bytes,
            "licence": b.licence,
            "aligned": b.aligned,
            "description": b.description,
            "cached": is_cached(b.name),
            "folder": str(cached_folder(b.name)),
        }
        for b in BUILT_IN.values()
    ]

    def table() -> None:
        print_table(
            "Built-in models",
            ["name", "parameters", "download", "licence", "aligned", "cached"],
            [
                [
                    r["name"],
                    f"{r['parameters'] / 1e6:.0f}M",
                    f"{r['download_bytes'] / 1e6:.0f} MB",
                    r["licence"],
                    r["aligned"],
                    "yes" if r["cached"] else "no",
                ]
                for r in rows
            ],
        )

    Shell(json_, quiet).answer({"models": rows}, table)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="built-in name")],
    device: AnyDevice = "cpu",
    dtype: AnyDtype = "float32",
    seed: AnySeed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Downloads a built-in model, checks it and keeps it as safetensors."""
    from ssah_lens.chat import built_in

    shell = Shell(json_, quiet)
    folder = run(shell, lambda: built_in.fetch(name, shell.note))
    shell.answer({"name": name, "folder": str(folder)}, lambda: print(folder))


@data_app.command("check")
def data_check(
    device: AnyDevice = "cpu",
    dtype: AnyDtype = "float32",
    seed: AnySeed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Validates the shipped collection: counts, near-duplicates, splits, how well its sides are matched."""
    from ssah_lens.chat.check import check_collection

    shell = Shell(json_, quiet)
    found = check_collection()
    for problem in found.problems:
        shell.note(problem)
    if found.problems:
        raise Fault(f"the shipped collection has {len(found.problems)} problems, the first: {found.problems[0]}")

    def table() -> None:
        print_table(
            "Shipped collection: no problems",
            ["file", "rows", "by split", "by kind"],
            [[n, str(c.rows), _listed(c.splits), _listed(c.groups)] for n, c in found.files.items()],
        )
        print(f"all files loaded in {found.load_seconds:.3f} s")
        if found.matching is not None:
            rows = _matching(found.matching, found.files["refusal_pairs"].phrasings)
            print_table("Pairs: how well the sides are matched", ["", ""], rows)

    shell.answer(found, table)


def _matching(m: Matching, phrasings: Mapping[str, int]) -> list[list[str]]:
    """How well the sides of the pairs are matched, a line per number."""
    no_model = "no tokenizer here; ssah-lens fetch smollm2-135m"
    return [
        ["phrasings", _listed(phrasings)],
        ["words a prompt, harmful and harmless", f"{m.words[0]:.1f}, {m.words[1]:.1f}"],
        ["AUROC of the number of words", estimate(m.length_auroc)],
        ["AUROC of word counts, train to test", f"{estimate(m.leak.matched)}, n={m.leak.matched.n} prompts"],
        ["  harmful side scores above its own twin", f"{estimate(m.leak.twins)}, n={m.leak.twins.n} pairs"],
        [
            "  harmful against ordinary instructions",
            f"{estimate(m.leak.unmatched)}, n={m.leak.unmatched.n} prompts",
        ],
        [
            "  words that lean (harmful:harmless)",
            _listed({w.word: f"{w.harmful}:{w.harmless}" for w in m.leak.words}),
        ],
        ["most frequent opening", f"'{m.template}', {m.template_share:.1%} of the pairs"],
        [
            "token-aligned pairs",
            f"{_listed(m.aligned)}, all of these {m.aligned_everywhere}" if m.aligned else no_model,
        ],
    ]


def _listed(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{k} {v}" for k, v in counts.items())
