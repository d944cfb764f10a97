"""Compares the found cell, under one protocol and with paired seeds, with chance and with what one would pick by hand.

It is trained beside random cells of its space, and beside rivals (`oche.spaces.rivals`) as wide as the limits allow or, without limits,
as wide as its own cost allows.
Random cells that no signal can pass (NAS-Bench-201 has some) are drawn again: beating a network that outputs a constant is no merit. Under
limits, each random cell has the width that uses them, as the found one has.

A network that its search hands out trained, a `kept` one, is not trained again: each rival is trained once, and the interval of the
difference is over test images, which are drawn anew with replacement (percentile bootstrap): it tells which of these two networks is
better on images of this kind, and nothing of other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy import stats

from oche.base import counted
from oche.data import batches, none
from oche.errors import RunFailed
from oche.genotype import Genotype
from oche.run import Run, silent
from oche.spaces import Network, Space
from oche.spaces.cost import cost, priced
from oche.spaces.fit import fit, widest, width_of
from oche.spaces.limits import Limits
from oche.spaces.rivals import RIVALS, Contenders, contenders
from oche.spaces.sampling import sample
from oche.tasks import named
from oche.training.evaluate import Score, evaluate, fitting_batch
from oche.training.train import Training, retrain

FOUND = "found"
DRAWN = 50
"""Random cells that are drawn for one that keeps the limits, at most."""

RESAMPLED = 1000
"""How often the test images are drawn anew for an interval."""

Keep = Callable[[Network, Score], None]
"""Takes a trained network and its test score."""

Epochs = Callable[[int], int]
"""The epochs of the trainings with a seed, by its number from 0, asked before the first of them."""


@dataclass(frozen=True)
class Comparison:
    """Test scores (`metric`), mostly in [0, 1], by cell, one per seed, the found cell first; the seeds are the same for every cell.

    `costs` are the found network's. `rivals` tells what those among them are that no search drew, `left_out` why others that were asked
    for are not among them. `floor` is the score of always naming the commonest class of the test images, where the task has one.
    `leads` are intervals over test images of the found network's lead, by rival, where it was kept as its search had trained it.
    `again` are the options with which `oche train RIVAL` reads the same data.
    """

    accuracies: dict[str, tuple[float, ...]]
    metric: str = "accuracy"
    costs: Mapping[str, float] = field(default_factory=dict)
    rivals: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    floor: float | None = None
    leads: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    again: str = ""

    @property
    def found(self) -> tuple[float, ...]:
        return self.accuracies[FOUND]

    @property
    def random(self) -> tuple[float, ...]:
        """The random cells' mean accuracy, by seed; () without random cells."""
        drawn = [a for name, a in self.accuracies.items() if name != FOUND and name not in self.rivals]
        return tuple(float(a) for a in np.mean(drawn, axis=0)) if drawn else ()

    @property
    def improvements(self) -> tuple[float, ...]:
        """RI = 100 (found - random) / random in percent, by seed (Yang et al., ICLR 2020, arXiv 1912.12522).

        () where a random score is not above 0, as R2 may be: then there is nothing to be relative to.
        """
        if min(self.random, default=0.0) <= 0:
            return ()
        return tuple(100 * (f - r) / r for f, r in zip(self.found, self.random, strict=True))

    def differences(self, rival: str) -> tuple[float, ...]:
        """The found cell's score minus a rival's, by seed."""
        return tuple(f - r for f, r in zip(self.found, self.accuracies[rival], strict=True))

    def record(self) -> dict[str, object]:
        """The record for the log; intervals are Student's, 95 %, over seeds."""
        gains = self.improvements
        relative: dict[str, object] = {}
        if gains:
            relative = {
                "relative_improvement": float(np.mean(gains)),
                "relative_improvement_interval": interval(gains),
            }
        return {
            "kind": "comparison",
            "metric": self.metric,
            "seeds": len(self.found),
            **({"over": "images"} if self.leads else {}),
            **({} if self.floor is None else {"floor": self.floor}),
            "found_mean": float(np.mean(self.found)),
            "found_interval": interval(self.found),
            **_mean("random", self.random),
            **relative,
            **({"found_costs": dict(self.costs)} if self.costs else {}),
            **({"rivals": {name: self._beside(name) for name in self.rivals}} if self.rivals else {}),
            **({"left_out": list(self.left_out)} if self.left_out else {}),
            **({"again": self.again} if self.rivals and self.again else {}),
        }

    def _beside(self, rival: str) -> dict[str, object]:
        """What a rival is, how it scored, and the found cell's lead, paired by seed."""
        scores, lead = self.accuracies[rival], self.differences(rival)
        return {
            **self.rivals[rival],
            "mean": float(np.mean(scores)),
            "interval": interval(scores),
            "difference": float(np.mean(lead)),
            "difference_interval": list(self.leads.get(rival, interval(lead))),
        }


def compare(
    training: Training,
    *,
    cells: int,
    seeds: int,
    keep: Keep,
    rivals: tuple[str, ...] = (),
    epochs: Epochs | None = None,
    kept: Network | None = None,
) -> Comparison:
    """Trains `training.genotype`, `cells` random cells and the `rivals`, names or `("auto",)`, `seeds` times each, on the same seeds.

    One seed follows the other, so that all networks of a seed are trained for as many `epochs`, the protocol's unless told otherwise.
    `keep` is handed the found cell's first network with its test score. What the run's log already holds is not trained again. A `kept`
    network stands for the found cell's with the first seed.
    """
    run, name_of_score = training.run, f"test_{training.task.metric}"
    done = dict(_done(training.run, name_of_score))
    accuracies: dict[str, list[float]] = {}
    leads = {str(r["cell"]): _ends(r["lead"]) for r in (run.records() if run else []) if "lead" in r}
    beside = rivals_of(training, rivals)
    of_rivals: dict[str, dict[str, object]] = {}
    costs: Mapping[str, float] = {}
    floors = [r["floor"] for r in (run.records() if run else []) if r.get("kind") == "trained" and "floor" in r]
    chosen = ((name, genotype, space) for name, (space, genotype) in beside.networks.items())
    networks = [*_cells(training, cells), *chosen]
    price = priced(training.limits)
    of_networks = {name: price(space, genotype) for name, genotype, space in networks}
    for name, _, space in networks:
        prices = of_networks[name]
        if name == FOUND:
            costs = prices
        elif name in beside.networks:
            of_rivals[name] = {
                "title": RIVALS[name].form(training.space.flat).title,
                "channels": width_of(space),
                **prices,
            }
    for n in range(seeds):
        seed = training.seed + n
        protocol = replace(training.protocol, epochs=epochs(n)) if epochs else training.protocol
        once = replace(training, protocol=protocol, seed=seed, run=None, listener=silent)
        for name, genotype, space in networks:
            prices = of_networks[name]
            if (name, seed) not in done:
                back = 0
                if kept and name == FOUND and n == 0:
                    network = kept
                else:
                    network, back = _trained(replace(once, space=space, genotype=genotype), f"{name}, seed {seed}")
                test = evaluate(network, training.data.test, none(training.data), training.fabric, training.task)
                if name == FOUND and seed == training.seed:
                    keep(network, test)
                record: dict[str, object] = {
                    "kind": "trained",
                    "cell": name,
                    "genotype": str(genotype),
                    "seed": seed,
                    **named(test.metrics, "test"),
                    **test.honest(training.task),
                    **prices,
                    **({"rolled_back": back} if back else {}),
                }
                if kept and name == FOUND and n == 0:
                    record["kept"] = True
                if kept and name in beside.networks:
                    leads[name] = lead_over_images(training, kept, network)
                    record["lead"] = list(leads[name])
                if run and training.fabric.is_global_zero:
                    run.log(record)
                training.listener("trained", record)
                done[name, seed] = test.value
                floors += [record["floor"]] if "floor" in record else []
            accuracies.setdefault(name, []).append(done[name, seed])
    scores = {name: tuple(values) for name, values in accuracies.items()}
    floor = float(str(floors[0])) if floors else None
    return Comparison(scores, training.task.metric, costs, of_rivals, beside.left_out, floor, leads)


def lead_over_images(training: Training, network: Network, other: Network) -> tuple[float, float]:
    """The 95 % interval of a network's lead in the task's score, over test images that are drawn anew with replacement."""
    (one, two), count = (by_image(training, each) for each in (network, other)), len(training.data.test)
    rng = np.random.default_rng(counted(training.seed, "images drawn anew").initial_seed())
    drawn = torch.from_numpy(rng.multinomial(count, np.full(count, 1 / count), RESAMPLED)).to(one.dtype)
    score = training.task.score
    leads = [score(torch.tensordot(n, one, 1)) - score(torch.tensordot(n, two, 1)) for n in drawn]
    low, high = np.percentile(leads, [2.5, 97.5])
    return float(low), float(high)


@torch.no_grad()
def by_image(training: Training, network: Network) -> torch.Tensor:
    """The task's table of counts for each test image, which add up to that of all."""
    data, task = training.data, training.task
    found: list[torch.Tensor] = []
    for batch in batches(data.test, fitting_batch(data.size), none(data), training.fabric.device):
        with training.fabric.autocast():
            outputs = network.eval()(batch.images).float()
        ones = (slice(i, i + 1) for i in range(len(outputs)))
        found += [task.confusion(outputs[one], batch.targets[one]).cpu() for one in ones]
    return torch.stack(found)


def _ends(pair: object) -> tuple[float, float]:
    assert isinstance(pair, list)
    return float(pair[0]), float(pair[1])


def _trained(training: Training, name: str) -> tuple[Network, int]:
    """The trained network, and how often its training went back (`finite`). Raises RunFailed, with the name."""
    back: list[str] = []
    try:
        return retrain(replace(training, listener=lambda event, record: back.append(event))), back.count("rolled_back")
    except RunFailed as failed:
        raise RunFailed(f"In the comparison, {name}: {failed}") from None


def rivals_of(training: Training, asked: tuple[str, ...]) -> Contenders:
    """The rivals as wide as the training's limits allow; without limits, as its own network's parameters and multiply-adds do."""
    limits = training.limits
    if asked and not limits:
        own = cost(training.space, training.genotype)
        limits = Limits(own.parameters, own.multiply_adds)
    return contenders(asked, training.space, limits)


def _mean(name: str, scores: Sequence[float]) -> dict[str, object]:
    return {f"{name}_mean": float(np.mean(scores)), f"{name}_interval": interval(scores)} if scores else {}


def interval(values: Sequence[float], level: float = 0.95) -> list[float]:
    """Student's confidence interval of the mean; of one value, or of equal ones, that value twice."""
    mean, error = float(np.mean(values)), float(stats.sem(values)) if len(values) > 1 else 0.0
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error if error > 0 else 0.0
    return [mean - half, mean + half]


def _cells(training: Training, cells: int) -> Iterator[tuple[str, Genotype, Space]]:
    """Each cell with the space that its network is built in: under limits, a random one is as wide as they allow, like the found one."""
    yield FOUND, training.genotype, training.space
    yield from random_cells(training, cells)


def random_cells(training: Training, cells: int) -> Iterator[tuple[str, Genotype, Space]]:
    """The random cells alone, which depend on the training's space, seed and limits."""
    for i in range(1, cells + 1):
        rng = counted(training.seed, "compare", i)
        for _ in range(DRAWN):
            drawn = sample(training.space, rng)
            while not drawn.connected:
                drawn = sample(training.space, rng)
            space = _as_wide(training, drawn)
            if space is not None:
                break
        else:  # hardly any keeps the limits: one that is made to
            found = fit(training.space, drawn, training.limits)
            drawn, space = found.genotype, found.space
        yield f"random {i}", drawn, space


def _as_wide(training: Training, drawn: Genotype) -> Space | None:
    """The space in which a random cell keeps the limits, None where it keeps them in none; without limits, that of the found cell."""
    space, limits = training.space, training.limits
    if not limits:
        return space
    if limits.fixed:
        return space if limits.kept(priced(limits)(space, drawn)) else None
    return widest(space, drawn, limits)


def _done(run: Run | None, score: str) -> Iterator[tuple[tuple[str, int], float]]:
    for record in run.records() if run else []:
        if record.get("kind") == "trained":
            yield (str(record["cell"]), int(str(record["seed"]))), float(str(record[score]))
