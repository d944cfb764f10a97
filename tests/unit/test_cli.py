"""The command line: what it lists, and that bad input is one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from oche.api import search as api
from oche.api.inference import Prediction
from oche.cli import main as cli
from oche.genotype import Genotype, published
from oche.methods import METHODS
from oche.run import Run
from oche.spaces import SPACES

COMMANDS = ("search", "train", "eval", "predict", "export", "report", "draw", "list", "check", "cite", "doctor")
KINDS = ("methods", "spaces", "ops", "data", "budgets", "protocols", "genotypes")

Oche = Callable[..., tuple[int, str, str]]
"""Runs `oche ...` in this process: (exit code, stdout, stderr)."""


@pytest.fixture
def oche(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Oche:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["oche", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def assert_refused(done: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, and one sentence on stderr that holds all of `words`."""
    code, _, err = done
    assert code == 2, err
    assert err.startswith("oche: "), err
    assert err.endswith((".\n", ")\n", "'\n")), err
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err, err


def folder_of_images(root: Path, classes: int = 2, count: int = 12, side: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for c in range(classes):
        (root / f"class_{c}").mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class_{c}" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search without a network."""
    settings = {"space.channels": 4, "split.weights": 0.05, "split.arch": 0.05}
    out = tmp_path_factory.mktemp("cli") / "searched"
    return api.search(
        "darts", space="toy", budget="smoke", epochs=1, compare=0, settings=settings, device="cpu", out=out
    ).run.path


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged; like a run from before digests it has none, so what lies behind them is tried."""
    return Path(shutil.copytree(searched, tmp_path / "run", ignore=shutil.ignore_patterns("digests.json")))


# ---------------------------------------------------------------------- help and lists


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(cli.app, [command, "--help"])
    assert done.exit_code == 0
    assert f"oche {command}" in done.output.replace("root", "oche") or "Usage" in done.output


def test_help_needs_no_torch() -> None:
    """In a process of its own, all help texts after one another."""
    code = f"""
import sys
from typer.testing import CliRunner
from oche.cli import main as cli
for words in [[], *([c] for c in {COMMANDS!r})]:
    assert CliRunner().invoke(cli.app, [*words, "--help"]).exit_code == 0, words
assert not {{"torch", "numpy", "matplotlib", "plotly"}} & set(sys.modules), "help imported too much"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_arguments_it_shows_the_help(oche: Oche) -> None:
    code, out, err = oche()
    assert code in (0, 2)
    assert "search" in out + err


def test_list_methods_as_json(oche: Oche) -> None:
    code, out, _ = oche("list", "methods", "--json")
    assert code == 0
    assert set(json.loads(out)) == set(METHODS)
    assert {"darts", "darts_2nd", "pcdarts", "rf_darts", "rf_pcdarts", "random_sampling"} <= set(json.loads(out))


@pytest.mark.parametrize("kind", KINDS)
def test_every_list_has_names_and_lines(kind: str, oche: Oche) -> None:
    code, out, _ = oche("list", kind, "--json")
    entries = json.loads(out)
    assert code == 0
    assert entries
    assert all(isinstance(line, str) and line for line in entries.values())
    code, out, _ = oche("list", kind)
    assert code == 0
    assert all(name in out for name in entries)


def test_the_lists_are_complete(oche: Oche) -> None:
    assert set(json.loads(oche("list", "spaces", "--json")[1])) == set(SPACES)
    assert set(json.loads(oche("list", "genotypes", "--json")[1])) == set(published())
    assert set(json.loads(oche("list", "budgets", "--json")[1])) == {"paper", "quick", "smoke"}


def test_list_of_nothing_known(oche: Oche) -> None:
    assert_refused(oche("list", "method"), "'method'", "did you mean 'methods'")


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rf_dart",), ("method 'rf_dart'", "did you mean 'rf_darts'")),
        (("mine.py:method",), ("no file 'mine.py'", "FILE.py:NAME")),
        (("--space", "nb2001"), ("space 'nb2001'", "did you mean 'nb201'")),
        (("--budget", "papers"), ("budget 'papers'", "did you mean 'paper'")),
        (("--protocol", "darts_cifer"), ("protocol 'darts_cifer'", "did you mean 'darts_cifar'")),
        (("--device", "cuba"), ("device 'cuba'", "did you mean 'cuda'")),
        (("--device", "cpu:x"), ("no device 'cpu:x'",)),
        (("--precision", "b16"), ("precision 'b16'", "did you mean 'bf16'")),
        (("--data", "digit"), ("'digit'", "did you mean 'digits'")),
        (("--data", "no/such/folder"), ("no/such/folder",)),
        (("--data", "no.npz"), ("no.npz",)),
        (("--epochs", "0"), ("at least one epoch",)),
        (("--batch", "1"), ("batches of two",)),
        (("--config", "no.toml"), ("no file 'no.toml'",)),
        (("--resume", "no_run"), ("no run folder 'no_run'",)),
    ],
)
def test_search_refuses_unknown_names(arguments: tuple[str, ...], words: tuple[str, ...], oche: Oche) -> None:
    assert_refused(oche("search", *arguments), *words)


def test_cuda_where_there_is_none(oche: Oche, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert_refused(oche("search", "--device", "cuda"), "no device 'cuda'", "--device auto")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("space.cells", ("'space.cells' sets nothing", "NAME=VALUE")),
        ("=3", ("sets nothing",)),
        ("space.cell=3", ("'cell'", "did you mean 'cells'")),
        ("space.cells=many", ("cells must be int", "'many'")),
        ("space.inputs=3", ("'inputs'",)),
        ("data.vall=0.1", ("'vall'", "did you mean 'val'")),
        ("train.epoch=3", ("'epoch'", "did you mean 'epochs'")),
        ("trainabel.classifier=true", ("'trainabel'", "did you mean 'trainable'")),
        ("trainable.clasifier=true", ("'trainable.clasifier'", "did you mean 'trainable.classifier'")),
        ("trainable.classifier=3.5", ("trainable.classifier must be bool",)),
        ("trainable=clasifier", ("trainable 'clasifier'", "did you mean 'classifier'")),
        ("arch_optimizer=sgd", ("arch_optimizer must be",)),
        ("method.clasifier=true", ("'clasifier'",)),
        ("weight_lr.start=fast", ("weight_lr.start must be float",)),
        ("split.arch=0.9", ("add up to at most 1",)),
        ("space.channels=0", ("at least one channel",)),
    ],
)
def test_search_refuses_settings(setting: str, words: tuple[str, ...], oche: Oche) -> None:
    assert_refused(oche("search", "rf_darts", "--budget", "smoke", "--set", setting), *words)


@pytest.mark.parametrize(
    "arguments",
    [
        ("pcdarts", "--set", "space.channels=6"),
        ("pcdarts", "--set", "method.K=0"),
        ("darts", "--set", 'space.ops=["conv"]'),
        ("darts", "--set", "arch_every=0"),
        ("darts", "--compare-seeds", "0"),
        ("darts", "--compare", "-1"),
        ("darts", "--devices", "0"),
        ("random_sampling", "--compile"),
    ],
)
def test_search_refuses_impossible_settings(arguments: tuple[str, ...], oche: Oche) -> None:
    assert_refused(oche("search", "--budget", "smoke", "--space", "toy", *arguments))


def test_methods_without_parts_take_no_settings(oche: Oche) -> None:
    assert_refused(oche("search", "random_sampling", "--set", "weight_lr.start=0.1"), "random_sampling", "no parts")
    assert_refused(oche("search", "rf_random_sampling"), "supernet")


@pytest.mark.parametrize("flag", ["--epoch", "--spaces", "--nonsense"])
def test_unknown_flags(flag: str, oche: Oche) -> None:
    code, _, err = oche("search", flag, "3")
    assert code == 2
    assert flag in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "darts", "pcdarts"),
        ("serch",),
        ("search", "--epochs", "many"),
        ("search", "--set"),
        ("eval",),
        ("predict", "run"),
        ("draw", "NB201_9930", "extra"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], oche: Oche) -> None:
    code, out, err = oche(*arguments)
    assert code == 2, out + err
    assert "Traceback" not in err
    assert sum(line.startswith(("Error", "oche:")) or "Error" in line for line in err.splitlines()) <= 1
    assert err


# ---------------------------------------------------------------------- data


def test_data_that_cannot_be_searched(oche: Oche, tmp_path: Path) -> None:
    one = folder_of_images(tmp_path / "one", classes=1)
    assert_refused(oche("search", "--data", one), "one class only", "at least two")
    (tmp_path / "empty").mkdir()
    assert_refused(oche("search", "--data", tmp_path / "empty"), "holds no folders")
    assert_refused(oche("check", tmp_path / "missing"), "missing")


def test_an_unreadable_image(oche: Oche, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data")
    (data / "class_1" / "bad.png").write_bytes(b"no image at all")
    for command in (("search", "--data", data), ("check", data)):
        assert_refused(oche(*command), "bad.png", "cannot be read")
    whole = (data / "class_0" / "0.png").read_bytes()
    (data / "class_1" / "bad.png").write_bytes(whole[: len(whole) // 2])
    assert_refused(oche("check", data), "bad.png")


def test_wrong_channel_counts(oche: Oche, tmp_path: Path) -> None:
    labels = np.arange(20) % 2
    np.savez(tmp_path / "two.npz", x_train=np.zeros((20, 8, 8, 9), np.uint8), y_train=labels)
    assert_refused(oche("check", tmp_path / "two.npz"), "no axis is shorter")
    assert_refused(oche("search", "--set", "data.channels=2"), "channels=2")


def test_too_few_or_too_small_images(oche: Oche, tmp_path: Path) -> None:
    assert_refused(oche("check", folder_of_images(tmp_path / "few", count=2)), "too few")
    assert_refused(oche("check", folder_of_images(tmp_path / "small", side=4)), "too small")


def test_a_budget_that_cannot_fit(oche: Oche) -> None:
    done = oche("search", "darts", "--space", "nb201", "--budget", "smoke", "--batch", "100000000")
    assert_refused(done, "GiB", "--batch")


def test_check_says_what_is_in_the_data(oche: Oche, tmp_path: Path) -> None:
    code, out, _ = oche("check", folder_of_images(tmp_path / "data", classes=3))
    assert code == 0
    assert all(f"class_{c}" in out for c in range(3))
    assert "8x8" in out.replace(" ", "")


# ---------------------------------------------------------------------- genotypes


def test_a_genotype_of_another_space(oche: Oche, tmp_path: Path) -> None:
    arch = str(Genotype.parse("NB201_9930"))
    assert_refused(oche("train", arch, "--space", "darts"), "darts")
    assert_refused(oche("train", "DARTS_V2", "--space", "s2"), "s2")
    file = tmp_path / "genotype.json"
    file.write_text(Genotype.parse("DARTS_V2").to_json())
    assert_refused(oche("train", file, "--space", "nb201"), "'darts'", "'nb201'")


@pytest.mark.parametrize("text", ["nonsense", "Genotype(normal=", "{}", '{"schema": 99}', "|none|"])
def test_damaged_genotypes(text: str, oche: Oche) -> None:
    for command in ("train", "draw"):
        assert_refused(oche(command, text))


@pytest.mark.parametrize("text", ["|none~0|", "|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|"])
def test_genotypes_that_do_not_fit_their_space(text: str, oche: Oche) -> None:
    assert_refused(oche("train", text))


def test_train_needs_a_genotype(oche: Oche) -> None:
    assert_refused(oche("train"), "needs a genotype")


def test_a_damaged_genotype_file(oche: Oche, run: Path) -> None:
    genotype = run / Run.GENOTYPE
    whole = genotype.read_text()
    genotype.write_text(whole[: len(whole) // 2])
    for command in ("train", "draw"):
        assert_refused(oche(command, run), "genotype")
    genotype.write_text(
        whole.replace("skip_connect", "none") if "skip_connect" in whole else whole.replace("none", "skip_connect")
    )
    assert_refused(oche("draw", run), "hash")


def test_a_file_that_is_no_text(oche: Oche, tmp_path: Path) -> None:
    picture = folder_of_images(tmp_path / "data") / "class_0" / "0.png"
    for command in ("draw", "train"):
        assert_refused(oche(command, picture))


def test_draw(oche: Oche, tmp_path: Path) -> None:
    code, out, _ = oche("draw", "NB201_9930")
    assert code == 0
    assert "skip_connect" in out
    assert oche("draw", "DARTS_V2", "--out", tmp_path / "cell.svg")[0] == 0
    assert (tmp_path / "cell.svg").read_bytes().lstrip().startswith(b"<")
    assert_refused(oche("draw", "DARTS_V2", "--out", tmp_path / "cell.jpeg2000"))


# ---------------------------------------------------------------------- runs


@pytest.mark.parametrize("command", ["eval", "export", "report", "train", "draw"])
def test_a_folder_that_is_no_run(command: str, oche: Oche, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert_refused(oche(command, tmp_path / "folder"), "no run folder")


@pytest.mark.parametrize("command", ["eval", "export", "report"])
def test_a_run_that_is_not_there(command: str, oche: Oche) -> None:
    assert_refused(oche(command, "nowhere"), "no run folder 'nowhere'")


@pytest.mark.parametrize("arguments", [("eval",), ("export",), ("predict", ".")])
def test_a_run_without_a_network(arguments: tuple[str, ...], oche: Oche, searched: Path) -> None:
    assert_refused(oche(arguments[0], searched, *arguments[1:]), "holds no trained network", "oche train")


def test_unknown_export_format(oche: Oche, searched: Path) -> None:
    assert_refused(oche("export", searched, "--format", "onxx"), "'onxx'", "did you mean 'onnx'")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_checkpoint(share: float, oche: Oche, run: Path) -> None:
    (run / Run.GENOTYPE).unlink()  # not finished
    whole = (run / Run.STATE).read_bytes()
    (run / Run.STATE).write_bytes(whole[: int(len(whole) * share)])
    assert_refused(oche("search", "--resume", run, "--quiet"), "state.pt", "truncated or damaged")


@pytest.mark.parametrize("name", ["state.pt", "run.toml"])
def test_a_flipped_bit_is_refused(name: str, oche: Oche, searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    (run / Run.GENOTYPE).unlink()
    data = bytearray((run / name).read_bytes())
    data[len(data) // 2] ^= 4
    (run / name).write_bytes(data)
    assert_refused(oche("search", "--resume", run, "--quiet"), name, "damaged or edited")


def test_a_checkpoint_of_other_settings(oche: Oche, run: Path) -> None:
    (run / Run.GENOTYPE).unlink()
    config = run / Run.CONFIG
    config.write_text(config.read_text().replace("channels = 4", "channels = 8"))
    assert_refused(oche("search", "--resume", run, "--quiet"), "state.pt", "another space or method")


def test_a_damaged_run_toml(oche: Oche, run: Path) -> None:
    whole = (run / Run.CONFIG).read_text()
    (run / Run.CONFIG).write_text(whole[: len(whole) // 3] + "\n[[[")
    assert_refused(oche("search", "--resume", run), "run.toml", "TOML")
    (run / Run.CONFIG).write_text("[nothing]\n")
    assert_refused(oche("search", "--resume", run), "[request]")
    (run / Run.CONFIG).write_bytes(b"\xff\xfe\x00")
    assert_refused(oche("search", "--resume", run), "run.toml")


def test_a_search_is_no_training(oche: Oche, searched: Path) -> None:
    assert_refused(oche("train", "--resume", searched), "oche search --resume")


def test_resuming_a_finished_search_shows_it_again(oche: Oche, run: Path) -> None:
    code, out, _ = oche("search", "--resume", run, "--quiet")
    assert code == 0
    assert Genotype.from_json((run / Run.GENOTYPE).read_text()).arch_string() in out.replace("\n", "")


def test_options_beside_resume_or_config_are_not_ignored(oche: Oche, searched: Path) -> None:
    """An option that is accepted and ignored is worse than none."""
    assert_refused(oche("search", "--resume", searched, "--epochs", "50", "--quiet"), "--epochs", "--resume")
    assert_refused(oche("search", "--config", searched / Run.CONFIG, "--seed", "5", "--dry-run"), "--seed", "--config")
    assert_refused(oche("search", "pcdarts", "--config", searched / Run.CONFIG), "method", "--config")
    assert_refused(oche("train", "--resume", searched, "--out", "x"), "--out", "--resume")


def test_dry_run_measures_and_leaves_nothing(oche: Oche, tmp_path: Path) -> None:
    code, out, err = oche("search", "--space", "toy", "--budget", "smoke", "--dry-run")
    assert code == 0, err
    for word in ("digits", "10", "27 genotypes", "learn", "MiB", "cpu", "seed 0", "runs/rf_darts-toy"):
        assert word in out, out
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- leaving


def test_interrupting_gives_130(oche: Oche, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("oche.api.expected.timed", interrupted)
    code, _, err = oche("search", "--space", "toy", "--budget", "smoke")
    assert code == 130
    assert "interrupted" in err
    assert "Traceback" not in err


def test_a_real_process_ends_with_two_and_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "oche", "list", "nothing"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("oche: There is no list 'nothing'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_in_a_real_search(tmp_path: Path) -> None:
    """SIGINT while it searches: 130, one line, and a run that can be carried on."""
    import signal
    import time

    out = tmp_path / "run"
    arguments = [
        "search",
        "--space",
        "toy",
        "--budget",
        "smoke",
        "--epochs",
        "200",
        "--compare",
        "0",
        "--out",
        str(out),
    ]
    child = subprocess.Popen(
        [Path(sys.executable).parent / "oche", *arguments],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not (out / Run.STATE).exists():
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err


# ---------------------------------------------------------------------- data that people have


def test_check_lists_all_problems(oche: Oche, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data")
    for name in ("1.png", "3.png", "7.png"):
        (data / "class_1" / name).write_bytes(b"no image at all")
    code, out, err = oche("check", data)
    assert code == 2
    assert all(f"{n}. The image" in out for n in (1, 2, 3))
    assert "3 problems" in err
    code, out, _ = oche("check", data, "--json")
    assert code == 2
    assert len(json.loads(out)["problems"]) == 3


def test_check_tells_what_became_of_every_file(oche: Oche, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data", classes=3)
    (data / "class_1" / "film.mp4").write_bytes(b"film")
    shutil.copy(data / "class_0" / "0.png", data / "class_2" / "again.png")
    code, out, _ = oche("check", data)
    assert code == 0
    told = " ".join(out.split())
    assert "skipped 1 no image (.mp4)" in told
    assert "used 37 train images" in told
    code, out, _ = oche("check", data, "--json", "--set", "data.size=16")
    found = json.loads(out)
    assert found["contract"]["size"] == [16, 16]
    assert sum(sum(counts.values()) for counts in found["counts"].values()) == 37
    assert any("several classes, pixel for pixel" in note for note in found["notes"])
    assert_refused(oche("check", data, "--set", "space.cells=3"), "space.cells")


def test_predict_ends_with_1_where_an_image_cannot_be_read(
    oche: Oche, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command alone: what is classified is tested with the API."""

    def predicted(run: Path, images: list[Path], *, device: str, failed: Callable[[str], None]) -> list[Prediction]:
        failed("The image b.png cannot be read: it is not an image; remove or replace it.")
        return [Prediction(images[0], "cat", 0.9, "values up to 4000, where the train images end at 255")]

    class Classifies:
        class space:
            task = "classify"

    monkeypatch.setattr("oche.api.inference.predict", predicted)
    monkeypatch.setattr("oche.training.export.load_network", lambda run: Classifies)
    (tmp_path / "run.toml").write_text("")
    code, out, err = oche("predict", tmp_path, "a.png")
    assert code == 1
    assert out.split() == ["a.png", "cat", "90.0%"]
    assert err.splitlines() == [
        "oche: a.png has values up to 4000, where the train images end at 255.",
        "oche: The image b.png cannot be read: it is not an image; remove or replace it.",
    ]


@pytest.mark.slow
def test_results_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One object on stdout, all else on stderr."""
    monkeypatch.chdir(tmp_path)
    small = ["--epochs", "1", "--quiet", "--json"]
    searched = CliRunner().invoke(
        cli.app, ["search", "darts", "--space", "toy", "--budget", "smoke", "--compare", "0", *small]
    )
    assert searched.exit_code == 0, searched.output
    result = json.loads(searched.stdout)
    assert Genotype.from_json(json.dumps(result["genotype"])).space == "toy"
    assert Path(result["report"]).is_file()
    trained = CliRunner().invoke(cli.app, ["train", result["run"], "--protocol", "smoke", *small])
    assert trained.exit_code == 0, trained.output
    assert 0 <= json.loads(trained.stdout)["test"]["accuracy"] <= 1
    planned = CliRunner().invoke(cli.app, ["search", "darts", "--space", "toy", "--dry-run", "--json"])
    assert json.loads(planned.stdout)["space"]["type"] == "ToySpace"
    assert "genotypes" in planned.stderr
    assert not cli.console.stderr
