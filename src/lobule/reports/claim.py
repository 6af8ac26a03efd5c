"""The CLAIM 2024 checklist for a cohort report: answered from provenance, and open where nothing is known.

The wording of the items is abridged. The checklist: Tejani et al., Radiology: Artificial Intelligence 2024.
"""

from __future__ import annotations

from collections.abc import Mapping

from lobule.reports.page import table, text

ITEMS: tuple[tuple[str, str], ...] = (
    ("Title and abstract", "Identification as a study of AI methodology, with the category of technology"),
    ("Title and abstract", "Structured summary of design, methods, results and conclusions"),
    ("Introduction", "Scientific and clinical background, with the intended use and role of the AI approach"),
    ("Introduction", "Aims, objectives and hypotheses"),
    ("Study design", "Prospective or retrospective study"),
    ("Study design", "Goal of the study"),
    ("Data", "Data sources"),
    ("Data", "Inclusion and exclusion criteria"),
    ("Data", "Preprocessing"),
    ("Data", "Selection of subsets of the data"),
    ("Data", "De-identification"),
    ("Data", "Handling of missing data"),
    ("Data", "Image acquisition"),
    ("Reference standard", "Definition of the reference standard"),
    ("Reference standard", "Rationale for the reference standard"),
    ("Reference standard", "Source of the annotations"),
    ("Reference standard", "Annotation of the test set"),
    ("Reference standard", "Variability within and between annotators"),
    ("Data partitions", "Assignment of data to partitions"),
    ("Data partitions", "Level at which partitions are disjoint"),
    ("Testing data", "Intended sample size"),
    ("Model", "Description of the model"),
    ("Model", "Software, frameworks and packages"),
    ("Model", "Initialisation of parameters"),
    ("Training", "Training approach"),
    ("Training", "Selection of the final model"),
    ("Training", "Ensembling"),
    ("Evaluation", "Metrics of performance"),
    ("Evaluation", "Statistical measures of significance and uncertainty"),
    ("Evaluation", "Robustness or sensitivity analysis"),
    ("Evaluation", "Explainability or interpretability"),
    ("Evaluation", "Evaluation on internal data"),
    ("Evaluation", "Testing on external data"),
    ("Evaluation", "Registration of a clinical trial"),
    ("Results", "Numbers of patients and examinations included and excluded"),
    ("Results", "Demographic and clinical characteristics of each partition"),
    ("Results", "Performance with uncertainty"),
    ("Results", "Estimates of diagnostic performance and their precision"),
    ("Results", "Failure analysis of incorrect results"),
    ("Discussion", "Limitations"),
    ("Discussion", "Implications for practice, with intended use and clinical role"),
    ("Other information", "Full study protocol or further technical details"),
    ("Other information", "Availability of software, model and data"),
    ("Other information", "Funding and the role of funders"),
)
"""Section and content of the 44 items, in order."""

OPEN = "Not known to Lobule; the study team must answer this."


def claim_table(answers: Mapping[int, str]) -> str:
    """Build the table of all items.

    Args:
        answers: Plain text by the number of the item, counted from 1; all other items are shown as open.
    """
    rows = []
    for index, (section, item) in enumerate(ITEMS, 1):
        answer = answers.get(index)
        cell = text(answer) if answer else f"<span class=warning>{text(OPEN)}</span>"
        rows.append([str(index), text(section), text(item), cell])
    answered = sum(1 for index in range(1, len(ITEMS) + 1) if answers.get(index))
    heading = f"<p>{answered} of {len(ITEMS)} items are answered from the files; the others are open.</p>"
    return heading + table(["", "section", "item", "answer"], rows, numeric=(0,))
