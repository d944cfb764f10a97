"""The bench: methods x spaces x data x budgets x seeds, on one machine or on a Ray cluster, judged fairly.

matrix -> trials -> run_trial (here, in processes, on Ray) -> trials.jsonl -> rows -> results.csv, pairs.csv, results.md, report.html
"""

from __future__ import annotations

from oche.bench.formats import frame
from oche.bench.matrix import Matrix, matrix_from
from oche.bench.result import BenchResult, Row
from oche.bench.runner import run_bench, show
from oche.bench.stats import relative_improvement

__all__ = ["BenchResult", "Matrix", "Row", "frame", "matrix_from", "relative_improvement", "run_bench", "show"]
