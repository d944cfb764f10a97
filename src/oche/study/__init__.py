"""Studies of single-stage search: what discretisation costs, what entropy terms do, whether one stage is enough, who should see what.

    study = study_from("discretisation", overrides={"budgets": ("smoke",)})
    result = run_study(study, "runs/study-discretisation")

A study is a bench (`oche.bench`) of arms that are one method under different settings, and more that is measured of each search:
decodings (`decode`, `measure`) and degeneration. `presets` has the arms, `tables` and `pictures` what is shown.
"""

from __future__ import annotations

from oche.study.runner import Study, run_study, show, study_from, summary

__all__ = ["Study", "run_study", "show", "study_from", "summary"]
