"""Which of several searches is kept? The DARTS papers' own protocol: one search a seed, each cell trained briefly, the best on validation.

    runs/NAME/seeds/seed_0/        the search of that seed, a run folder of its own; trained/ holds its cell's training
    runs/NAME/log.jsonl            a line a seed
    runs/NAME/genotype.json        the cell that was picked

All searches see the same images, and all cells are trained with the same protocol and the same training seed. Test images are scored
for the report and pick nothing. What is done is not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from oche.api.folders import fitted, write_table
from oche.api.pinned import pin
from oche.data import none
from oche.genotype import Genotype
from oche.plan.resolve import Plan
from oche.run import Listener, Run, silent
from oche.spaces import Network
from oche.spaces.fit import built
from oche.spaces.rivals import NONE
from oche.tasks import named
from oche.training.evaluate import evaluate
from oche.training.train import Training, retrain

Search = Callable[[Plan, Run], tuple[Genotype, Network | None]]
"""Carries a search out in its folder, from wherever that stands; with the network where the search keeps its weights."""


def picked(plan: Plan, run: Run, search: Search, listener: Listener = silent) -> Genotype:
    """The cell of the seed that is best on validation images; writes a line a seed, then the genotype."""
    done = {int(str(record["seed"])): record for record in run.records() if record.get("kind") == "seed"}
    for seed in range(plan.request.seed, plan.request.seed + plan.request.seeds):
        if seed not in done:
            number = {"number": seed - plan.request.seed, "searches": plan.request.seeds}
            listener("searching", {"seed": seed, "epochs": plan.epochs, **number})
            done[seed] = _seed(plan, seed, Run(run.file(_folder(seed))), search)
            run.log(done[seed])
            listener("seed", done[seed])
    chosen = Run(run.file(_folder(int(str(best([*done.values()])["seed"])))))
    for file in sorted(chosen.file(Run.NETWORK).glob("*"), reverse=True):  # the card, which vouches for the rest, last
        run.write(f"{Run.NETWORK}/{file.name}", file.read_bytes())
    if chosen.has(Run.FRONT):
        run.write(Run.FRONT, chosen.read(Run.FRONT))
    run.write(Run.GENOTYPE, chosen.read(Run.GENOTYPE))
    return Genotype.from_json(chosen.read(Run.GENOTYPE).decode())


def best(records: Sequence[Mapping[str, object]]) -> Mapping[str, object]:
    """The record with the highest validation score (accuracy unless it says which `metric`), the first of equals.

    >>> best([{"seed": 0, "val_accuracy": 0.8, "test_accuracy": 0.9}, {"seed": 1, "val_accuracy": 0.9, "test_accuracy": 0.7}])["seed"]
    1
    """
    return max(records, key=lambda record: float(str(record[f"val_{record.get('metric', 'accuracy')}"])))


def _folder(seed: int) -> str:
    return f"seeds/seed_{seed}"


def _seed(plan: Plan, seed: int, run: Run, search: Search) -> dict[str, object]:
    """Searches with one seed, trains its cell unless the search did, and scores the network."""
    asked = plan.request
    settings = {"data.seed": asked.seed, **asked.settings}  # all seeds see the same split
    one = replace(plan, request=replace(asked, seed=seed, seeds=1, compare=0, rivals=NONE, settings=settings))
    if not run.has(Run.CONFIG):
        write_table(run, one.table(), one.files)
        pin(run, plan.data)
    genotype, network = search(one, run)
    data = plan.data.to(plan.fabric.device)
    if network is None:
        trained = Run(run.file("trained"))
        trained.path.mkdir(exist_ok=True)
        space = built(plan.space, fitted(run))
        training = Training(space, genotype, data, plan.protocol, asked.seed, plan.fabric, trained, task=plan.task)
        network = retrain(training)
    val, test = (evaluate(network, images, none(data), plan.fabric, plan.task) for images in (data.val, data.test))
    return {
        "kind": "seed",
        "seed": seed,
        "metric": plan.task.metric,
        **named(val.metrics, "val"),
        **test.card(plan.task),
        "skips": genotype.skips(),
        "genotype": str(genotype),
    }
